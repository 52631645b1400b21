// The page that makes rats: `rats(host, data, port)` puts controls and three linked planes into an element.
// All rats are made in a worker, so that sliders never wait; what is newest when it is free is drawn next.
//   data: what labkit/widgets/rat.py packed, bytes;  port.code(values), optional: hears of the code that is shown

// what the worker does, by messages; a function without surroundings
function ratWorker(model, files, post) {
  "use strict";
  let rats = null, field = { code: null, noise: null }, cancelled = false;

  const same = (a, b) => a && a.every((value, k) => value === b[k]);

  function slerp(a, b, t) { // the arc between two codes, lengths linear, as labkit.interpolate goes
    const length = (v) => Math.hypot(...v) || 1e-12, la = length(a), lb = length(b);
    const angle = Math.acos(Math.min(1, Math.max(-1, a.reduce((sum, value, k) => sum + value / la * b[k] / lb, 0))));
    if (angle < 1e-4) return a.map((value, k) => value + t * (b[k] - value));
    const [p, q] = [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
    return a.map((value, k) => (p * value / la + q * b[k] / lb) * (la + t * (lb - la)));
  }

  // the code that controls stand for: a rat of a seed, one between two codes, or a training animal's; and moved
  function codeOf({ seed, spread, between, animal, moves }) {
    const { meta, arrays } = rats;
    let code = new Float32Array(meta.latent);
    if (between) code = slerp(between.a, between.b, between.t);
    else if (animal !== undefined) code.set(arrays.codes.subarray(animal * meta.modes, (animal + 1) * meta.modes));
    else code = rats.draw(seed, spread);
    moves.forEach((amount, row) => {
      if (amount) for (let k = 0; k < meta.modes; k++) code[k] += amount * arrays.directions[row * meta.modes + k];
    });
    return code.map((value) => value + 0); // no negative zero, which is other bytes and so another noise
  }

  function nearest(code) {
    const { meta, arrays } = rats;
    let best = null;
    meta.animals.forEach((name, animal) => {
      let sum = 0;
      for (let k = 0; k < meta.modes; k++) sum += (code[k] - arrays.codes[animal * meta.modes + k]) ** 2;
      if (!best || sum < best.sum) best = { animal, name, sum };
    });
    return best && { animal: best.animal, name: best.name, distance: Math.sqrt(best.sum) };
  }

  const acts = {
    async open({ data }) {
      rats = await model.unpack(data);
      post({ what: "open", meta: rats.meta });
    },
    // three planes; while a slider moves, the noise stays that of the rat it began with
    frame({ state, at, noise, moving }) {
      const code = codeOf(state), one = rats.rat(code);
      if (noise && !same(field.code, code) && !(moving && field.noise)) field = { code, noise: rats.noise(code) };
      const planes = rats.meta.planes.map(({ axis }) => {
        const box = rats.meta.shape.map((n, k) => k === axis ? [at[k], at[k] + 1] : [0, n]);
        const { grey, labels, sides } = rats.seen(one, box, noise ? field.noise : null);
        const shown = new Uint8ClampedArray(grey.length);
        for (let i = 0; i < grey.length; i++) shown[i] = 255 * grey[i];
        return { grey: shown, labels, sides };
      });
      post({ what: "frame", planes, code });
    },
    // what takes the whole rat
    numbers({ state, turn }) {
      const began = performance.now(), code = codeOf(state), one = rats.rat(code, true);
      const { counts } = rats.volume(one, null);
      post({ what: "numbers", turn, counts, nearest: nearest(code), code, ms: performance.now() - began });
    },
    // a zip of n rats, which seeds from the state's own on make different
    async give({ n, state }) {
      cancelled = false;
      const zip = files.zip(), rows = [], more = { Modes: rats.meta.modes };
      const moves = state.moves.flatMap((value, row) => value ? [[rats.meta.sliders[row].name, value]] : []);
      if (moves.length) more.Moves = Object.fromEntries(moves);
      if (state.between) more.Between = "two others";
      else if (state.animal !== undefined) more.Animal = rats.meta.animals[state.animal];
      else more.Truncation = state.spread;
      for (let index = 0; index < n; index++) {
        const seed = state.seed + index, code = codeOf({ ...state, seed });
        const made = await files.filesOf(rats, { code, seed, index, more });
        if (cancelled) { post({ what: "cancelled" }); return; }
        rows.push(made.row);
        post({ what: "part", done: index + 1, parts: made.files.flatMap(([path, bytes]) => zip.add(path, bytes)) });
      }
      const rest = files.around(rats, rows, { torch_seed: state.seed, n, ...more });
      post({ what: "given", parts: [...rest.flatMap(([path, bytes]) => zip.add(path, bytes)), ...zip.end()] });
    },
    cancel() { cancelled = true; },
  };
  return async (message) => {
    try { await acts[message.what](message); } catch (error) { post({ what: "failed", of: message.what, error: String(error.message || error) }); }
  };
}

function rats(host, data, port = {}) {
  const times = host.ratTimes = { frames: [], volume: null }; // for those who measure
  let meta = null, worker = null, waiting = null, drawing = false, since = 0, settle = 0, turn = 0, shown = null, job = null;
  let at = [0, 0, 0], kept = {};
  let state = { seed: 1, spread: 1, moves: [] };

  host.classList.add("rats");
  host.setAttribute("role", "group");
  host.setAttribute("aria-label", "A machine that makes synthetic rats");

  const element = (name, parent, attributes, text) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (text) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  };
  const button = (text, parent, act, attributes) => {
    const made = element("button", parent, { type: "button", ...attributes }, text);
    made.addEventListener("click", act);
    return made;
  };

  function start() {
    const here = () => { // where a browser, or a page's rules, allow no worker
      const act = ratWorker(ratModel(), ratFiles(), (message) => setTimeout(() => hear(message)));
      worker = { postMessage: (message) => act(message), terminate() {} };
      worker.postMessage({ what: "open", data });
    };
    try { // from a text, since a page from a disk may load no other file
      const source = `${ratModel}\n${ratFiles}\n${ratWorker}\n`
        + "const act = ratWorker(ratModel(), ratFiles(), (message) => postMessage(message));\nonmessage = ({ data }) => act(data);";
      worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
      worker.onmessage = ({ data: message }) => hear(message);
      worker.onerror = (event) => { if (meta) say(`The rats cannot be made: ${event.message}`); else here(); };
      worker.postMessage({ what: "open", data });
    } catch {
      here();
    }
  }

  function hear(message) {
    if (message.what === "open") { meta = message.meta; build(); ask(false); return; }
    if (message.what === "frame") {
      drawing = false;
      shown = message;
      draw();
      times.frames.push(performance.now() - since);
      if (waiting) next();
    } else if (message.what === "numbers") { if (message.turn === turn) numbers(message); } // not of an earlier rat
    else if (message.what === "part") {
      job.parts.push(new Blob(message.parts));
      progress.value = message.done;
      progress.textContent = `${message.done} made`;
    } else if (message.what === "given") {
      save(new Blob([...job.parts, ...message.parts], { type: "application/zip" }));
      given(`${job.n} saved. Unpacked, labkit.open_cohort opens the folder, and any viewer the scans.`);
    } else if (message.what === "cancelled") given("Nothing was saved.");
    else {
      drawing = false;
      if (message.of === "give") given(`It failed: ${message.error}`);
      else say(`The rats cannot be made: ${message.error}`);
    }
  }

  const copy = () => ({ ...state, moves: [...state.moves] });

  // draw what the controls stand for, as soon as the worker is free
  function ask(moving) {
    waiting = { what: "frame", state: copy(), at: [...at], noise: noise.checked, moving };
    if (!drawing) next();
    volumes.classList.add("rats-stale");
    turn++;
    clearTimeout(settle);
    settle = setTimeout(() => {
      if (moving) ask(false);
      else worker.postMessage({ what: "numbers", turn, state: copy() });
    }, moving ? 200 : 60);
  }

  function next() {
    drawing = true;
    since = performance.now();
    worker.postMessage(waiting);
    waiting = null;
  }

  let canvases = [], sheets = [], ranges = [], noise, outlines, words, volumes, near, progress, stop, form, seedBox, spreadBox, way, note, cells = {};

  function build() {
    at = meta.shape.map((n) => n >> 1);
    state.moves = meta.sliders.map(() => 0);
    host.replaceChildren();
    const mm = (axis) => meta.shape[axis] * meta.zooms[axis];
    const views = element("div", host, { class: "rats-views" });
    canvases = ["coronal", "sagittal", "horizontal"].map((name, place) => {
      const plane = meta.planes[place], box = element("div", views, { class: `rats-view rats-${name}`, style: `flex: ${mm(plane.across)}` });
      const canvas = element("canvas", box, { tabindex: 0, role: "application", "aria-roledescription": "brain section",
        style: `aspect-ratio: ${mm(plane.across)} / ${mm(plane.up)}` });
      canvas.addEventListener("pointerdown", (event) => point(event, canvas, plane));
      canvas.addEventListener("pointermove", (event) => { if (event.buttons && event.pointerType === "mouse") point(event, canvas, plane); });
      canvas.addEventListener("keydown", (event) => key(event, plane));
      const small = Object.assign(document.createElement("canvas"), { width: meta.shape[plane.across], height: meta.shape[plane.up] });
      sheets[place] = { canvas: small, pen: small.getContext("2d"), image: new ImageData(small.width, small.height) };
      return { canvas, name, plane };
    });

    const row = element("div", host, { class: "rats-row" });
    button("New rat", row, () => { state = { seed: state.seed + 1, spread: state.spread || 1, moves: zeros() }; show(); });
    button("Mean rat", row, () => { state = { seed: state.seed, spread: 0, moves: zeros() }; show(); });
    button("Sliders to 0", row, () => { state.moves = zeros(); show(); });
    noise = tick("noise", row, true);
    outlines = tick("outlines", row, false);
    outlines.parentNode.hidden = !meta.labels.length;
    outlines.addEventListener("change", draw);
    noise.addEventListener("change", () => ask(false));
    words = element("span", row, { class: "rats-words" });

    const sliders = element("div", host, { class: "rats-sliders" });
    seedBox = number("rat number", sliders, 0, 999999, (value) => base({ seed: value, spread: state.spread }));
    spreadBox = slider("spread", sliders, 0, 2, 1, "standard deviation of the code: 0 is the mean rat, 1 the model's own",
      (value) => base({ seed: state.seed, spread: value }));
    ranges = meta.sliders.map(({ name, words: told }, place) => slider(name, sliders, -3, 3, 0, told, (value) => {
      state.moves[place] = value;
      ask(true);
    }, " SD"));
    const ends = element("div", sliders, { class: "rats-ends" });
    for (const end of ["a", "b"]) {
      const one = button(`Keep as ${end.toUpperCase()}`, ends, () => {
        kept[end] = shown.code;
        one.setAttribute("aria-pressed", "true");
        way.input.disabled = !(kept.a && kept.b);
      }, { "aria-pressed": "false" });
    }
    way = slider("A to B", sliders, 0, 1, 0, "the arc between two rats that were kept", (value) => {
      state = { seed: state.seed, spread: state.spread, between: { ...kept, t: value }, moves: zeros() };
      show(true);
    });
    way.input.disabled = true;

    const below = element("div", host, { class: "rats-below" }), told = element("div", below);
    volumes = element("div", below, { class: "rats-numbers" });
    table();
    form = element("form", told, { class: "rats-row rats-give" });
    const label = element("label", form, {}, "Give me ");
    const many = element("input", label, { type: "number", min: 1, max: 100, value: 10, required: "", "aria-label": "how many rats" });
    label.append(" rats ");
    element("button", form, { type: "submit" }, "Save (.zip, BIDS)");
    button("Save this rat", form, () => give(1, copy()));
    progress = element("progress", form, { max: 1, value: 0, "aria-label": "rats made", hidden: "" });
    stop = button("Cancel", form, () => worker.postMessage({ what: "cancel" }), { hidden: "" });
    form.addEventListener("submit", (event) => { event.preventDefault(); give(+many.value, { seed: state.seed, spread: state.spread, moves: copy().moves }); });
    note = element("p", told, { class: "rats-note", role: "status" });
    near = element("p", told, { class: "rats-near" });
    const share = Math.round(100 * meta.share);
    element("p", host, { class: "rats-about" }, `Synthetic: no animal was scanned. Codes of ${meta.modes} of the model's ${meta.latent} numbers, `
      + `${share} % of its variance. Click or arrow keys move the crosshair, Page Up and Page Down go through a plane's slices.`);
    new ResizeObserver(draw).observe(views);
  }

  const zeros = () => meta.sliders.map(() => 0);
  function base(given) {
    state = { ...given, moves: state.moves };
    way.set(0);
    ask(true);
  }

  function tick(text, parent, checked) {
    const label = element("label", parent, { class: "rats-tick" }), input = element("input", label, { type: "checkbox" });
    input.checked = checked;
    label.append(` ${text}`);
    return input;
  }

  function slider(name, parent, low, high, value, told, act, unit = "") {
    const label = element("label", parent, { class: "rats-slider", title: told });
    element("span", label, {}, name);
    const input = element("input", label, { type: "range", min: low, max: high, step: (high - low) / 100, value });
    const output = element("output", label);
    const set = (to) => {
      input.value = to;
      output.textContent = `${(+input.value).toFixed(high > 2 ? 1 : 2).replace("-", "−")}${unit}`;
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { set(input.value); act(+input.value); });
    set(value);
    return { input, set };
  }

  function number(name, parent, low, high, act) {
    const label = element("label", parent, { class: "rats-slider" });
    element("span", label, {}, name);
    const input = element("input", label, { type: "number", min: low, max: high, step: 1, value: state.seed });
    input.addEventListener("input", () => { if (input.checkValidity() && input.value !== "") act(+input.value); });
    return { input, set: (to) => { input.value = to; } };
  }

  // controls as the state has them, and the rat they stand for
  function show(moving = false) {
    seedBox.set(state.seed);
    spreadBox.set(state.spread);
    ranges.forEach((range, place) => range.set(state.moves[place]));
    if (!state.between) way.set(0);
    ask(moving);
  }

  function point(event, canvas, { across, up }) {
    const box = canvas.getBoundingClientRect(), share = [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
    [across, up].forEach((axis, place) => move(axis, Math.floor(share[place] * meta.shape[axis])));
    ask(true);
  }

  const move = (axis, to) => { at[axis] = Math.min(meta.shape[axis] - 1, Math.max(0, to)); };

  function key(event, { axis, across, up }) {
    const steps = { ArrowLeft: [across, -1], ArrowRight: [across, 1], ArrowDown: [up, -1], ArrowUp: [up, 1], PageDown: [axis, -1], PageUp: [axis, 1] };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    const [along, by] = steps[event.key];
    move(along, at[along] + by);
    event.preventDefault();
    ask(true);
  }

  function draw() {
    if (!shown) return;
    canvases.forEach(({ canvas, name, plane }, place) => {
      const { grey, labels, sides } = shown.planes[place], columns = meta.shape[plane.across], rows = meta.shape[plane.up];
      const width = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)), steps = [sides[1] * sides[2], sides[2], 1];
      if (!width) return;
      const height = Math.round(width * rows * meta.zooms[plane.up] / (columns * meta.zooms[plane.across]));
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      const voxel = (column, row) => column * steps[plane.across] + (rows - 1 - row) * steps[plane.up];
      const sheet = sheets[place], pixels = new Uint32Array(sheet.image.data.buffer);
      for (let row = 0, i = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
        pixels[i++] = 0xff000000 | grey[voxel(column, row)] * 0x010101; // the same in red, green and blue
      }
      sheet.pen.putImageData(sheet.image, 0, 0);
      const pen = canvas.getContext("2d"), [wide, tall] = [width / columns, height / rows];
      pen.drawImage(sheet.canvas, 0, 0, width, height);
      if (outlines.checked) outline(pen, labels, voxel, columns, rows, wide, tall);
      marks(pen, plane, width, height, wide, tall, rows);
      canvas.setAttribute("aria-label", `${name} section ${at[plane.axis] + 1} of ${meta.shape[plane.axis]}; arrow keys move the crosshair`);
    });
  }

  // the edges between labels, in the colour of the higher one
  function outline(pen, labels, voxel, columns, rows, wide, tall) {
    const colours = Object.fromEntries(meta.labels.map(({ value, colour }) => [value, colour])), paths = {};
    const edge = (a, b, ...line) => {
      if (a === b) return;
      const path = paths[Math.max(a, b)] = paths[Math.max(a, b)] || new Path2D();
      path.moveTo(line[0] * wide, line[1] * tall);
      path.lineTo(line[2] * wide, line[3] * tall);
    };
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      const own = labels[voxel(column, row)];
      if (column + 1 < columns) edge(own, labels[voxel(column + 1, row)], column + 1, row, column + 1, row + 1);
      if (row + 1 < rows) edge(own, labels[voxel(column, row + 1)], column, row + 1, column + 1, row + 1);
    }
    pen.lineWidth = Math.max(1, wide / 5);
    for (const [value, path] of Object.entries(paths)) { pen.strokeStyle = colours[value]; pen.stroke(path); }
  }

  // crosshair, sides, and a bar of 5 mm
  function marks(pen, plane, width, height, wide, tall, rows) {
    const pixel = window.devicePixelRatio || 1, size = 12 * pixel, bar = 5 / meta.zooms[plane.across] * wide;
    const x = (at[plane.across] + 0.5) * wide, y = (rows - at[plane.up] - 0.5) * tall;
    pen.lineWidth = pixel;
    pen.strokeStyle = "rgb(120 200 255 / 0.6)";
    pen.beginPath();
    for (const line of [[x, 0, x, height], [0, y, width, y]]) { pen.moveTo(line[0], line[1]); pen.lineTo(line[2], line[3]); }
    pen.stroke();
    pen.fillStyle = "#fff";
    pen.font = `${size}px sans-serif`;
    pen.fillRect(width - bar - size / 2, height - size / 2, bar, 2 * pixel);
    const write = (text, left, top, align) => { pen.textAlign = align; pen.fillText(text, left, top); };
    write("5 mm", width - size / 2, height - size * 0.8, "right");
    write(plane.left, size / 3, height / 2 + size / 3, "left");
    write(plane.right, width - size / 3, height / 2 + size / 3, "right");
    write(plane.top, width / 2, size, "center");
    write(plane.bottom, width / 2, height - size / 3, "center");
  }

  function table() {
    if (!meta.labels.length) return;
    const box = element("table", volumes, {}), head = element("tr", element("thead", box));
    for (const text of ["volume, mm³", "this rat", "real: 5 to 95 %"]) element("th", head, { scope: "col" }, text);
    const body = element("tbody", box);
    for (const { value, name, usual, colour } of meta.labels.filter((one) => one.value)) {
      const line = element("tr", body), title = element("th", line, { scope: "row" });
      element("span", title, { class: "rats-colour", style: `background: ${colour}` });
      title.append(name);
      cells[value] = element("td", line);
      element("td", line, {}, usual ? `${usual[0].toFixed(0)} to ${usual[2].toFixed(0)}` : "no labels");
    }
  }

  function numbers(message) {
    const mm3 = meta.zooms.reduce((product, side) => product * side, 1);
    for (const { value, usual } of meta.labels.filter((one) => one.value)) {
      const own = message.counts[value] * mm3, out = usual && (own < usual[0] || own > usual[2]);
      cells[value].textContent = own.toFixed(0) + (out ? (own < usual[0] ? " (below)" : " (above)") : "");
    }
    times.volume = message.ms;
    volumes.classList.remove("rats-stale");
    words.textContent = state.animal !== undefined ? `animal ${meta.animals[state.animal]}, as the model sees it` : state.between ? "between A and B" : "";
    const focused = near.contains(document.activeElement);
    near.replaceChildren();
    if (message.nearest) {
      const { name, distance, animal } = message.nearest;
      near.append(`Nearest training animal: ${name}, ${distance.toFixed(1)} SD away in code`
        + (meta.usual ? ` (a new real one: ${meta.usual.toFixed(1)}). ` : ". "));
      const see = button("Show it", near, () => { state = { seed: state.seed, spread: state.spread, animal, moves: zeros() }; show(); });
      if (focused) see.focus();
    }
    if (port.code) port.code(message.code);
  }

  // one at a time; buttons stay as they are, so that the keyboard does not lose its place
  function give(n, wanted) {
    if (job) return;
    if (n > 1 && !wanted.spread) { note.textContent = "At spread 0 every rat is the mean rat: take a larger spread, or save this rat."; return; }
    job = { n, seed: wanted.seed, parts: [] };
    progress.max = n;
    progress.value = 0;
    progress.hidden = stop.hidden = false;
    note.textContent = n > 1 ? `Making ${n} new rats, numbers ${wanted.seed} to ${wanted.seed + n - 1}, moved as the sliders are …` : "Making it …";
    worker.postMessage({ what: "give", n, state: wanted });
  }

  function given(text) {
    if (document.activeElement === stop) form.querySelector("button").focus();
    job = null;
    progress.hidden = stop.hidden = true;
    note.textContent = text;
  }

  function save(blob) {
    const link = element("a", null, { href: URL.createObjectURL(blob), download: `synthetic-rats-s${job.seed}-n${job.n}.zip` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function say(text) { (note || element("p", host, { role: "alert" })).textContent = text; }

  if (typeof DecompressionStream === "undefined") say("This browser is too old to unpack the rats: it has no DecompressionStream.");
  else start();
  return () => { clearTimeout(settle); if (worker) worker.terminate(); };
}

// for a page: every place that asks for rats, once it comes into view
function ratsInPage(css, packed) {
  const bytes = () => Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  window.ratMachine = { get model() { return ratModel(); }, get data() { return bytes(); } }; // for chapter 7's test
  const begin = () => document.querySelectorAll("div[data-rats]:not([data-rats-on])").forEach((host) => {
    host.dataset.ratsOn = "";
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      rats(host, bytes());
    });
    seen.observe(host);
  });
  const style = document.createElement("style");
  style.textContent = css;
  document.head.appendChild(style);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
}
