// Rats as files: NIfTI under gzip in a BIDS derivative in one zip, as labkit.generate writes a folder.
// A function without surroundings, as ratModel is.

function ratFiles() {
  "use strict";
  const ARRAYS = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array,
    int32: Int32Array, float32: Float32Array, float64: Float64Array, int64: BigInt64Array, uint64: BigUint64Array };
  const ENDS = { uint8: [0, 255], int8: [-128, 127], uint16: [0, 65535], int16: [-32768, 32767],
    uint32: [0, 2 ** 32 - 1], int32: [-(2 ** 31), 2 ** 31 - 1], uint64: [0, 2 ** 53], int64: [-(2 ** 53), 2 ** 53] };

  // numbers as Python rounds them: halves to the even neighbour
  const rounded = (value) => { const near = Math.round(value); return near - value === 0.5 && near % 2 ? near - 1 : near; };

  // voxels of the cohort's grid in the order of a file, whose first axis runs fastest and whose axes lie as `turn` says
  function voxels(values, shape, turn, type, scaled) {
    const out = new ARRAYS[type](values.length), [low, high] = ENDS[type] || [], steps = [shape[1] * shape[2], shape[2], 1];
    const sides = [], by = []; // of the file's axes
    let start = 0;
    turn.forEach(([to, sign], axis) => {
      sides[to] = shape[axis];
      by[to] = sign * steps[axis];
      if (sign < 0) start += (shape[axis] - 1) * steps[axis];
    });
    let place = 0;
    for (let z = 0; z < sides[2]; z++) for (let y = 0; y < sides[1]; y++) for (let x = 0; x < sides[0]; x++) {
      const value = scaled(values[start + x * by[0] + y * by[1] + z * by[2]]);
      const kept = low === undefined ? value : Math.min(high, Math.max(low, rounded(value)));
      out[place++] = type.endsWith("int64") ? BigInt(kept) : kept;
    }
    return new Uint8Array(out.buffer);
  }

  function nifti(like, bytes) {
    const before = Uint8Array.from(atob(like.before), (letter) => letter.charCodeAt(0));
    const out = new Uint8Array(before.length + bytes.length);
    out.set(before);
    out.set(bytes, before.length);
    return out;
  }

  async function gzip(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const text = (content) => new TextEncoder().encode(content);

  // the files of one rat, [[path, bytes], ...], and its row in the table of participants
  async function filesOf(rats, { code, seed, index, more }) {
    const { meta } = rats, { files } = meta, name = files.name.replace("%05d", String(index).padStart(5, "0"));
    const path = files.path.replaceAll("NAME", name), one = rats.rat(code, true);
    const made = rats.onFileGrid(rats.volume(one, rats.noise(code)));
    const [low, high] = files.ranges[seed % files.ranges.length];
    const scan = voxels(made.grey, files.shape, files.turn, files.scan.type, (value) => value * (high - low) + low + files.air);
    // nine digits give a single-precision number back exactly
    const digits = Array.from(code, (value) => Number(value.toPrecision(9)));
    const sidecar = { ...files.sidecar, TorchSeed: seed, Index: index, ...more, IntensityRange: [low, high], Code: digits };
    const out = [[path, await gzip(nifti(files.scan, scan))]];
    if (meta.labels.length) {
      const labels = voxels(made.labels, files.shape, files.turn, files.labels.type, (value) => value);
      out.push([path.replace(/_[^_]*$/, "_dseg.nii.gz"), await gzip(nifti(files.labels, labels))]);
    }
    out.push([path.replace(".nii.gz", ".json"), text(JSON.stringify(sidecar, null, 2) + "\n")]);
    return { files: out, row: [`sub-${name}`, "yes", seed, index, digits.slice(0, meta.modes).join(" ")] };
  }

  // what a folder has beside its scans
  function around(rats, rows, about) {
    const { meta } = rats, { texts } = meta.files, description = JSON.parse(texts["dataset_description.json"]);
    const table = [["participant_id", "synthetic", "torch_seed", "index", "code"], ...rows].map((row) => row.join("\t") + "\n").join("");
    const told = `\n## This folder\n\nScans: ${rows.length}, with torch's seeds from ${about.torch_seed} on, made in a browser from the first ${meta.modes} of `
      + `the model's ${meta.latent} numbers, which make ${Math.round(100 * meta.share)} % of its variance; the others are 0. The JSON file beside a `
      + "scan has its code: `labkit.decode` makes the scan again.\n";
    return Object.entries({ ...texts, "README.md": texts["README.md"] + told, "dataset_description.json": JSON.stringify({ ...description, ...about }, null, 2) + "\n",
      "participants.tsv": table }).map(([name, content]) => [name, text(content)]);
  }

  const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1;
    return n;
  });
  function crc32(bytes) {
    let sum = 0xffffffff;
    for (let i = 0; i < bytes.length; i++) sum = CRC[(sum ^ bytes[i]) & 255] ^ sum >>> 8;
    return (sum ^ 0xffffffff) >>> 0;
  }

  // a zip whose files stand as they are, since most are compressed: `add` gives what is to be written next, `end` the rest
  function zip() {
    const now = new Date(), central = [];
    const date = now.getFullYear() - 1980 << 9 | now.getMonth() + 1 << 5 | now.getDate();
    const time = now.getHours() << 11 | now.getMinutes() << 5 | now.getSeconds() >> 1;
    let at = 0;
    const fields = (list) => {
      const out = new DataView(new ArrayBuffer(list.reduce((sum, [bytes]) => sum + bytes, 0)));
      let place = 0;
      for (const [bytes, value] of list) { out[bytes === 2 ? "setUint16" : "setUint32"](place, value, true); place += bytes; }
      return new Uint8Array(out.buffer);
    };
    function add(path, bytes) {
      const name = text(path), sum = crc32(bytes);
      const common = [[2, 20], [2, 0x800], [2, 0], [2, time], [2, date], [4, sum], [4, bytes.length], [4, bytes.length], [2, name.length], [2, 0]];
      central.push(fields([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]]), name);
      const head = fields([[4, 0x04034b50], ...common]);
      at += head.length + name.length + bytes.length;
      return [head, name, bytes];
    }
    function end() {
      const size = central.reduce((sum, part) => sum + part.length, 0), n = central.length / 2;
      return [...central, fields([[4, 0x06054b50], [2, 0], [2, 0], [2, n], [2, n], [4, size], [4, at], [2, 0]])];
    }
    return { add, end };
  }

  return { filesOf, around, zip };
}
