// New rats for the judging test, made in the page: what labkit.evidence.judging.session shows of a scan, of scans made now.

// a volume as raters see it: the head alone, its 99th percentile white; coronal slices, caudal first, one under the other
function ratStimulus(grey, [nx, ny, nz]) {
  const size = nx * ny * nz, steps = [ny * nz, nz, 1], single = Math.fround; // numpy computes in single precision here

  function percentile(values, part) { // between neighbours
    const sorted = Float32Array.from(values).sort(), place = part * (sorted.length - 1), low = Math.floor(place);
    return single(sorted[low] + single(single(place - low) * single(sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low])));
  }

  const rounded = (value) => { const near = Math.round(value); return near - value === 0.5 && near % 2 ? near - 1 : near; };

  // calls back with each neighbour across a face, -1 for none
  function neighbours(i, act) {
    const x = Math.floor(i / steps[0]), y = Math.floor(i / steps[1]) % ny, z = i % nz;
    act(x > 0 ? i - steps[0] : -1);
    act(x < nx - 1 ? i + steps[0] : -1);
    act(y > 0 ? i - steps[1] : -1);
    act(y < ny - 1 ? i + steps[1] : -1);
    act(z > 0 ? i - 1 : -1);
    act(z < nz - 1 ? i + 1 : -1);
  }

  // voxels joined to one of the starts across faces, of those that are allowed
  function joined(starts, allowed, found) {
    const waiting = starts.filter((i) => allowed[i] && !found[i]);
    waiting.forEach((i) => { found[i] = 1; });
    let count = waiting.length;
    while (waiting.length) neighbours(waiting.pop(), (i) => { if (i >= 0 && allowed[i] && !found[i]) { found[i] = 1; count++; waiting.push(i); } });
    return count;
  }

  function headMask() {
    const threshold = single(0.15 * percentile(grey, 0.99)), bright = Uint8Array.from(grey, (value) => value > threshold);
    const eroded = bright.slice(), opened = new Uint8Array(size);
    for (let i = 0; i < size; i++) if (bright[i]) neighbours(i, (k) => { if (k < 0 || !bright[k]) eroded[i] = 0; });
    for (let i = 0; i < size; i++) if (eroded[i]) { opened[i] = 1; neighbours(i, (k) => { if (k >= 0) opened[k] = 1; }); }
    const seen = new Uint8Array(size);
    let first = -1, largest = 0;
    for (let i = 0; i < size; i++) {
      if (!opened[i] || seen[i]) continue;
      const count = joined([i], opened, seen);
      if (count > largest) [first, largest] = [i, count];
    }
    if (first < 0) { // too thin for an opening: what is brighter than the average
      const mean = grey.reduce((sum, value) => sum + value, 0) / size;
      return Uint8Array.from(grey, (value) => value > mean);
    }
    const head = new Uint8Array(size), outside = new Uint8Array(size), edge = [];
    joined([first], opened, head);
    const empty = head.map((value) => 1 - value);
    for (let i = 0; i < size; i++) if (empty[i]) neighbours(i, (k) => { if (k < 0) edge.push(i); });
    joined(edge, empty, outside);
    return outside.map((value) => 1 - value); // holes filled
  }

  const head = headMask(), white = Math.max(1e-6, percentile(grey.filter((_, i) => head[i]), 0.99));
  const stack = new Uint8ClampedArray(size);
  for (let z = 0, at = 0; z < nz; z++) for (let row = ny - 1; row >= 0; row--) for (let x = 0; x < nx; x++, at++) {
    const i = x * steps[0] + row * steps[1] + z;
    if (head[i]) stack[at] = rounded(single(255 * Math.min(1, Math.max(0, single(grey[i] / white)))));
  }
  return stack;
}

// a test of scans drawn now: real ones at random from those of the pool that were not shown yet, as long as there are
// enough, synthetic ones made by the machine; [session, port]
async function freshTest(session, fresh, machine, say) {
  const made = await machine.model.unpack(machine.data), { shape } = made.meta, half = Math.min(session.trials >> 1, fresh.pictures.length);
  fresh.seen = fresh.seen || new Set(fresh.shown);
  const unseen = () => [...fresh.pictures.keys()].filter((place) => !fresh.seen.has(fresh.scans[place]));
  if (unseen().length < half) fresh.seen.clear();
  const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1, noise = machine.model.randn(seed, 16 * (fresh.pictures.length + half));
  const shuffled = (list, from) => list.map((one, k) => [noise[from + k], one]).sort(([a], [b]) => a - b).map(([, one]) => one);
  const real = shuffled(unseen(), 0).slice(0, half);
  real.forEach((place) => fresh.seen.add(fresh.scans[place]));
  const items = real.map((place) => ({ source: "real", scan: fresh.scans[place], picture: fresh.pictures[place] }));
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [shape[0], shape[1] * shape[2]];
  const pen = sheet.getContext("2d"), image = pen.createImageData(sheet.width, sheet.height), pixels = new Uint32Array(image.data.buffer);
  for (let rat = 0; rat < half; rat++) { // all of them before the first is shown: one that comes late would be known
    say(`Making rat ${rat + 1} of ${half} …`);
    await new Promise((done) => setTimeout(done));
    const code = made.draw((seed + 1 + rat) >>> 0, 1);
    const { grey } = made.onFileGrid(made.volume(made.rat(code, true), made.noise(code)));
    ratStimulus(grey, shape).forEach((value, i) => { pixels[i] = 0xff000000 | value * 0x010101; });
    pen.putImageData(image, 0, 0);
    const hash = machine.model.sha256(new Uint8Array(code.buffer));
    const scan = Array.from(hash.subarray(0, 2), (word) => word.toString(16).padStart(8, "0")).join("");
    items.push({ source: fresh.source, scan, picture: sheet.toDataURL() });
  }
  const order = shuffled(items, fresh.pictures.length), id = seed.toString(16).padStart(8, "0") + "fr";
  const own = { ...session, id, trials: order.length };
  const stubs = order.map(({ source, scan }, trial) => ({ ...fresh.stub, session: id, trials: order.length, seed, trial, sources: [source], scans: [scan] }));
  return [own, pagePort(own, order.map(({ picture }) => [picture]), stubs)];
}
