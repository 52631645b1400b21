// An atlas in a browser: the formula of labkit/rendering.py and labkit/atlas.py over what labkit/widgets/rat.py packed.
// A function without surroundings, so that its text can be sent to a worker; volumes are flat, the last axis runs fastest.

function ratModel() {
  "use strict";

  // what was packed: the length of a header, the header, whole numbers in planes of bytes
  async function unpack(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const content = new Uint8Array(await new Response(stream).arrayBuffer());
    const length = new DataView(content.buffer).getUint32(0, true);
    const meta = JSON.parse(new TextDecoder().decode(content.subarray(4, 4 + length)));
    const arrays = {};
    let at = 4 + length;
    for (const { name, size, width, step, delta } of meta.arrays) {
      const planes = content.subarray(at, at += size * width);
      if (step === null) { // as they are
        arrays[name] = new Float32Array(planes.slice().buffer);
        continue;
      }
      const whole = new Int16Array(size);
      for (let i = 0; i < size; i++) whole[i] = width === 1 ? planes[i] << 24 >> 24 : planes[i] | planes[size + i] << 8;
      for (const stride of [...delta].reverse()) for (let i = stride; i < size; i++) whole[i] += whole[i - stride];
      arrays[name] = step ? Float32Array.from(whole, (value) => value * step) : Int8Array.from(whole);
    }
    return rats(meta, arrays);
  }

  const SMALL = 3e-5; // a weight that moves nothing that can be seen: a ten-thousandth of a voxel, or of the noise

  // a matrix (rows, columns) with the first and the last column of each row that counts
  function banded(values, rows, columns) {
    const first = new Int32Array(rows), last = new Int32Array(rows);
    for (let row = 0; row < rows; row++) {
      let low = 0, high = columns;
      while (low < columns - 1 && Math.abs(values[row * columns + low]) < SMALL) low++;
      while (high > low + 1 && Math.abs(values[row * columns + high - 1]) < SMALL) high--;
      [first[row], last[row]] = [low, high];
    }
    return { values, rows, columns, first, last };
  }

  // some rows of a matrix along one axis of values with sides `dims`, the first of which counts channels
  function along(values, dims, axis, matrix, from, to) {
    const before = dims.slice(0, axis).reduce((a, b) => a * b, 1), n = dims[axis];
    const after = dims.slice(axis + 1).reduce((a, b) => a * b, 1), rows = to - from;
    const out = new Float32Array(before * rows * after), { values: weights, columns } = matrix;
    for (let row = 0; row < rows; row++) {
      const first = matrix.first[from + row], last = matrix.last[from + row], at = (from + row) * columns;
      for (let b = 0; b < before; b++) {
        const place = (b * rows + row) * after;
        if (after === 1) {
          let sum = 0;
          for (let k = first; k < last; k++) sum += weights[at + k] * values[b * n + k];
          out[place] = sum;
          continue;
        }
        for (let k = first; k < last; k++) {
          const weight = weights[at + k], start = (b * n + k) * after;
          for (let i = 0; i < after; i++) out[place + i] += weight * values[start + i];
        }
      }
    }
    return { values: out, dims: [...dims.slice(0, axis), rows, ...dims.slice(axis + 1)] };
  }

  // a matrix along each axis, for a box of voxels; what shrinks most comes first
  function separable(values, channels, sides, matrices, box) {
    let now = { values, dims: [channels, ...sides] };
    const order = [0, 1, 2].sort((a, b) => (box[a][1] - box[a][0]) / sides[a] - (box[b][1] - box[b][0]) / sides[b]);
    for (const axis of order) now = along(now.values, now.dims, axis + 1, matrices[axis], ...box[axis]);
    return now.values;
  }

  const whole = (sides) => sides.map((n) => [0, n]);

  // a cell of a grid and a point in it: index of its first corner, steps to the others, parts of the way
  const place = () => ({ first: 0, a: 0, b: 0, c: 0, x: 0, y: 0, z: 0 });

  // the cell around a point, counted in voxels of a grid `factor` times as coarse; beyond the edge it is the edge
  function find(at, x, y, z, sides, strides, factor) {
    x = Math.min(sides[0] - 1, Math.max(0, (x + 0.5) * factor - 0.5));
    y = Math.min(sides[1] - 1, Math.max(0, (y + 0.5) * factor - 0.5));
    z = Math.min(sides[2] - 1, Math.max(0, (z + 0.5) * factor - 0.5));
    const i = Math.min(sides[0] - 2, x | 0), k = Math.min(sides[1] - 2, y | 0), l = Math.min(sides[2] - 2, z | 0);
    at.first = i * strides[0] + k * strides[1] + l * strides[2];
    [at.a, at.b, at.c] = strides;
    at.x = x - i;
    at.y = y - k;
    at.z = z - l;
  }

  // trilinear interpolation of values that begin at `start`
  function between(values, at, start) {
    const { a, b, c, x, y, z } = at, p = start + at.first, q = p + b, r = p + a, s = r + b;
    const one = values[p] + z * (values[p + c] - values[p]), two = values[q] + z * (values[q + c] - values[q]);
    const three = values[r] + z * (values[r + c] - values[r]), four = values[s] + z * (values[s + c] - values[s]);
    const near = one + y * (two - one), far = three + y * (four - three);
    return near + x * (far - near);
  }

  // displacement after following a velocity for unit time, by scaling and squaring
  function flow(velocity, sides, squarings) {
    const size = sides[0] * sides[1] * sides[2], strides = [sides[1] * sides[2], sides[2], 1], at = place();
    let moved = velocity.map((value) => value / 2 ** squarings);
    for (let step = 0; step < squarings; step++) {
      const next = moved.slice();
      for (let x = 0, i = 0; x < sides[0]; x++) for (let y = 0; y < sides[1]; y++) for (let z = 0; z < sides[2]; z++, i++) {
        find(at, x + moved[i], y + moved[size + i], z + moved[2 * size + i], sides, strides, 1);
        for (let c = 0; c < 3; c++) next[c * size + i] += between(moved, at, c * size);
      }
      moved = next;
    }
    return moved;
  }

  // smallest determinant of the Jacobian of x -> x + moved(x), by central differences, one-sided at the edges
  function smallestJacobian(moved, sides) {
    const size = sides[0] * sides[1] * sides[2], strides = [sides[1] * sides[2], sides[2], 1], m = new Float64Array(9);
    let smallest = Infinity;
    for (let x = 0, i = 0; x < sides[0]; x++) for (let y = 0; y < sides[1]; y++) for (let z = 0; z < sides[2]; z++, i++) {
      for (let axis = 0; axis < 3; axis++) {
        const at = axis === 0 ? x : axis === 1 ? y : z, back = at > 0 ? strides[axis] : 0;
        const forth = at < sides[axis] - 1 ? strides[axis] : 0, part = back && forth ? 0.5 : 1;
        for (let c = 0; c < 3; c++) {
          m[3 * c + axis] = part * (moved[c * size + i + forth] - moved[c * size + i - back]) + (c === axis ? 1 : 0);
        }
      }
      const value = m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6]) + m[2] * (m[3] * m[7] - m[4] * m[6]);
      if (value < smallest) smallest = value;
    }
    return smallest;
  }

  // rows of (3, 4): the affine transform whose logarithm these 12 numbers are
  function affine(pose, sides) {
    const generator = [0, 1, 2].map((row) => [0, 1, 2].map((k) => pose[3 + 3 * row + k] / (sides[k] / 2)).concat(pose[row]));
    generator.push([0, 0, 0, 0]);
    const times = (a, b) => a.map((row) => b[0].map((_, k) => row.reduce((sum, value, j) => sum + value * b[j][k], 0)));
    let term = [0, 1, 2, 3].map((i) => [0, 1, 2, 3].map((k) => +(i === k))), sum = term;
    for (let n = 1; n <= 16; n++) { // of a quarter of the logarithm, then squared twice
      term = times(term, generator.map((row) => row.map((value) => value / 4 / n)));
      sum = sum.map((row, i) => row.map((value, k) => value + term[i][k]));
    }
    for (let n = 0; n < 2; n++) sum = times(sum, sum);
    return sum.slice(0, 3);
  }

  // torch's generator on a CPU: Mersenne twister, 24 bits a number, Box and Muller over blocks of 16
  function randn(seed, n) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ state[i - 1] >>> 30) + i;
    let at = 624;
    function draw() {
      if (at === 624) {
        for (let i = 0; i < 624; i++) {
          const y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7fffffff;
          state[i] = state[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
        }
        at = 0;
      }
      let y = state[at++];
      y ^= y >>> 11;
      y ^= y << 7 & 0x9d2c5680;
      y ^= y << 15 & 0xefc60000;
      return ((y ^ y >>> 18) & 0xffffff) / 0x1000000;
    }
    const out = new Float32Array(Math.max(16, n));
    function normal(start) {
      for (let i = start; i < start + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - out[i])), angle = 2 * Math.PI * out[i + 8];
        out[i] = radius * Math.cos(angle);
        out[i + 8] = radius * Math.sin(angle);
      }
    }
    for (let i = 0; i < out.length; i++) out[i] = draw();
    for (let i = 0; i + 16 <= out.length; i += 16) normal(i);
    if (out.length % 16) { // the end overlaps with the block before it, and is drawn anew
      for (let i = out.length - 16; i < out.length; i++) out[i] = draw();
      normal(out.length - 16);
    }
    return out.subarray(0, n);
  }

  // the first eight bytes of SHA-256, which say which noise a code has; its lower half as a number
  function sha256(bytes) {
    const primes = [], root = (value, power) => Math.floor((value ** power % 1) * 2 ** 32);
    for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
    const k = primes.map((prime) => root(prime, 1 / 3)), hash = Uint32Array.from(primes.slice(0, 8), (prime) => root(prime, 1 / 2));
    const padded = new Uint8Array((bytes.length + 72 >> 6) << 6), view = new DataView(padded.buffer), w = new Uint32Array(64);
    padded.set(bytes);
    padded[bytes.length] = 128;
    view.setUint32(padded.length - 4, bytes.length * 8);
    const turn = (value, by) => value >>> by | value << 32 - by;
    for (let block = 0; block < padded.length; block += 64) {
      for (let i = 0; i < 16; i++) w[i] = view.getUint32(block + 4 * i);
      for (let i = 16; i < 64; i++) {
        const a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >>> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >>> 10);
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let i = 0; i < 64; i++) {
        const one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (e & f ^ ~e & g) + k[i] + w[i];
        const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + (a & b ^ a & c ^ b & c);
        [h, g, f, e, d, c, b, a] = [g, f, e, d + one | 0, c, b, a, one + two | 0];
      }
      [a, b, c, d, e, f, g, h].forEach((value, i) => { hash[i] += value; });
    }
    return hash;
  }

  function noiseSeed(code) {
    const [first, second] = sha256(new Uint8Array(Float32Array.from(code).buffer)); // four bytes each, the highest first
    const swap = (value) => (value & 255) * 2 ** 24 + (value >>> 8 & 255) * 2 ** 16 + (value >>> 16 & 255) * 2 ** 8 + (value >>> 24);
    // a 64-bit number, lowest byte first, less its lowest bit; of which the generator takes the lower half
    return ((swap(first) >>> 1) + (swap(second) & 1) * 2 ** 31) >>> 0;
  }

  function rats(meta, arrays) {
    const { shape, knots, coarse, bright, latent, modes, factor } = meta, kinds = meta.labels.length;
    const size = shape[0] * shape[1] * shape[2], fine = shape.map((n) => n * factor);
    const fineSteps = [fine[1] * fine[2], fine[2], 1], steps3 = [shape[1] * shape[2], shape[2], 1];
    const matrices = (name, rows, columns) => [0, 1, 2].map((axis) => banded(arrays[`${name}_${"xyz"[axis]}`], rows[axis], columns[axis]));
    const toFlow = matrices("to_flow", coarse, knots), toVoxels = matrices("to_voxels", shape, coarse);
    const toBright = matrices("to_bright", shape, bright), filters = matrices("filter", shape, shape);
    const cell = shape.map((n, axis) => n / coarse[axis]), parts = meta.sizes, width = parts.reduce((a, b) => a + b);
    const basis = arrays.basis, steps = Float32Array.from(arrays.exponents, (value) => 2 ** (value / 2));
    for (let k = 0; k < modes; k++) for (let i = 0; i < width; i++) basis[k * width + i] *= steps[i];
    for (let i = 0; i < width; i++) arrays.centre[i] *= steps[i];
    const logits = arrays.logits, sure = new Uint8Array(kinds && arrays.template.length); // the most probable of each voxel
    for (let k = 1, n = sure.length; k < kinds; k++) for (let i = 0; i < n; i++) if (logits[k * n + i] > logits[sure[i] * n + i]) sure[i] = k;

    // a code drawn by a seed, as torch.randn draws it, times a spread; what the page does not hold of it is 0
    function draw(seed, spread) {
      const code = new Float32Array(latent);
      code.set(randn(seed, latent).subarray(0, modes));
      return code.map((value) => value * spread + 0); // no negative zero, which is other bytes and so another noise
    }

    // what an animal is made of, by its code; unless `anew`, from the last one's where few numbers of the code have changed
    const middle = { code: new Float32Array(latent), own: arrays.centre };
    let known = middle;
    function numbers(code, anew) {
      const changed = known.code.reduce((count, value, k) => count + (value !== code[k]), 0);
      const from = anew || changed > modes / 4 ? middle : known, own = from.own.slice();
      for (let k = 0; k < modes; k++) {
        const value = code[k] - from.code[k];
        if (value) for (let i = 0, at = k * width; i < width; i++) own[i] += value * basis[at + i];
      }
      known = { code: Float32Array.from(code), own };
      return own;
    }

    const appearance = (j) => arrays.appearances.subarray(j * size, (j + 1) * size);

    // all that the slices of a rat have in common
    function rat(code, anew) {
      const own = numbers(code, anew), points = coarse[0] * coarse[1] * coarse[2];
      let at = 0;
      const [velocity, pose, brightness, looks] = parts.map((length) => own.subarray(at, at += length));
      const full = separable(velocity, 3, knots, toFlow, whole(coarse)).map((value, i) => value / cell[Math.floor(i / points)]);
      let moved = flow(full, coarse, meta.squarings), smallest = smallestJacobian(moved, coarse), strength = 1;
      while (smallest < meta.floor) { // a velocity that would fold is made gentler
        strength *= 0.8;
        moved = flow(full.map((value) => value * strength), coarse, meta.squarings);
        smallest = smallestJacobian(moved, coarse);
      }
      moved = moved.map((value, i) => value * cell[Math.floor(i / points)]);
      const changed = new Float32Array(size); // what differs in tissue
      for (let j = 0; j < parts[3]; j += 4) { // four at a time, as reading is what takes time
        const [a, b, c, d] = [0, 1, 2, 3].map((k) => j + k < parts[3] ? looks[j + k] : 0);
        const [p, q, r, s] = [0, 1, 2, 3].map((k) => appearance(Math.min(j + k, parts[3] - 1)));
        for (let i = 0; i < size; i++) changed[i] += a * p[i] + b * q[i] + c * r[i] + d * s[i];
      }
      return { code, moved, matrix: affine(pose, shape), brightness, looks: changed, smallest };
    }

    // the noise of a code: texture, real and imaginary part, each of a volume
    function noise(code) {
      const drawn = randn(noiseSeed(code), 3 * size);
      const texture = separable(drawn.subarray(0, size), 1, shape, filters, whole(shape));
      return { texture, real: drawn.subarray(size, 2 * size), imaginary: drawn.subarray(2 * size) };
    }

    // the most probable of the labels at a point; where all corners have one, that
    function labelAt(at) {
      const { a, b, c, first } = at, one = sure[first];
      if (sure[first + c] === one && sure[first + b] === one && sure[first + b + c] === one && sure[first + a] === one
        && sure[first + a + c] === one && sure[first + a + b] === one && sure[first + a + b + c] === one) return one;
      let best = 0, largest = -Infinity;
      for (let k = 0; k < kinds; k++) {
        const value = between(logits, at, k * sure.length);
        if (value > largest) [best, largest] = [k, value];
      }
      return best;
    }

    // grey values and labels of a box of voxels, [[from, to], ...]
    function seen(one, box, noisy) {
      const sides = box.map(([from, to]) => to - from), n = sides[0] * sides[1] * sides[2];
      const away = separable(one.moved, 3, coarse, toVoxels, box), light = separable(one.brightness, 1, bright, toBright, box);
      const grey = new Float32Array(n), labels = new Uint8Array(n), at = place(), m = one.matrix, { template, spread } = arrays, { looks } = one;
      const values = meta.labels.map(({ value }) => value), { noise: level, black } = meta;
      const power = Math.PI / 2 * level ** 2 + 1e-12, [cx, cy, cz] = shape.map((side, axis) => box[axis][0] + 0.5 - side / 2);
      const [[ax, ay, az, a], [bx, by, bz, b], [dx, dy, dz, d]] = m.map((row, axis) => [...row.slice(0, 3), row[3] + shape[axis] / 2 - 0.5]);
      for (let x = 0, i = 0; x < sides[0]; x++) for (let y = 0; y < sides[1]; y++) for (let z = 0; z < sides[2]; z++, i++) {
        const u = cx + x + away[i], v = cy + y + away[n + i], w = cz + z + away[2 * n + i];
        const p = ax * u + ay * v + az * w + a, q = bx * u + by * v + bz * w + b, r = dx * u + dy * v + dz * w + d;
        find(at, p, q, r, fine, fineSteps, factor);
        let value = between(template, at, 0);
        if (kinds) labels[i] = values[labelAt(at)];
        find(at, p, q, r, shape, steps3, 1);
        value += between(looks, at, 0);
        const gain = Math.exp(light[i]), clean = value * gain;
        if (black && clean < black) continue; // air that is black in the files
        if (!noisy) {
          grey[i] = Math.sqrt(clean * clean + power);
          continue;
        }
        const voxel = (box[0][0] + x) * steps3[0] + (box[1][0] + y) * steps3[1] + box[2][0] + z;
        const texture = between(spread, at, 0) * gain * noisy.texture[voxel];
        const real = clean + texture + level * noisy.real[voxel], imaginary = level * noisy.imaginary[voxel];
        grey[i] = Math.sqrt(real * real + imaginary * imaginary);
      }
      return { grey, labels, sides };
    }

    // grey values, 0 to 1, and labels on the grid of the files, where that is another: labels by their largest share
    function onFileGrid({ grey, labels }) {
      const unit = grey.map((value) => Math.min(1, Math.max(0, value)));
      if (!arrays.to_file_x) return { grey: unit, labels };
      const sides = meta.files.shape, across = matrices("to_file", sides, shape), to = (values) => separable(values, 1, shape, across, whole(sides));
      const most = new Uint8Array(sides[0] * sides[1] * sides[2]), inside = to(new Float32Array(labels.length).fill(1));
      const largest = inside.map((share) => share < 1 - 1e-6 ? 1 - share : -1); // around the model's grid there is background
      for (const { value } of meta.labels) {
        const share = to(Float32Array.from(labels, (label) => +(label === value)));
        for (let i = 0; i < most.length; i++) {
          const own = value ? share[i] : share[i] + 1 - inside[i];
          if (own > largest[i]) [most[i], largest[i]] = [value, own];
        }
      }
      return { grey: to(unit), labels: most };
    }

    // the whole scan, slice by slice, and how many voxels each label has
    function volume(one, noisy) {
      const grey = new Float32Array(size), labels = new Uint8Array(size), counts = {};
      for (let x = 0; x < shape[0]; x++) {
        const part = seen(one, [[x, x + 1], [0, shape[1]], [0, shape[2]]], noisy);
        grey.set(part.grey, x * steps3[0]);
        labels.set(part.labels, x * steps3[0]);
      }
      for (const { value } of meta.labels) counts[value] = 0;
      for (let i = 0; i < size; i++) counts[labels[i]]++;
      return { grey, labels, counts };
    }

    return { meta, arrays, draw, rat, noise, seen, volume, onFileGrid };
  }

  return { unpack, randn, sha256 };
}
