// The judging test, for a live widget and for a page without a kernel: `judge(host, session, port)`.
// The port is what differs: where pictures come from and where answers go.
//   port.pictures(number) -> promise of one image address a scan
//   port.answer(number, given) -> promise, rejected with a message where the answer could not be kept
//   port.finish() -> promise of HTML;  port.open(rater) -> promise of the trials answered before, rejected with a message
//   port.fresh(say), optional: a promise of another session and port, of scans drawn now;  port.save(), optional: offers the answers as a file;  port.notice(), optional: what the rater should know, or ""

function judge(host, session, port) {
  const two = session.task === "pair" || session.task === "preference";
  const rated = session.task === "rating";
  const choices = rated ? [] : two ? [["a", "A", "A, left"], ["b", "B", "B, right"]]
    : [["r", "real", "real"], ["s", "synthetic", "synthetic"]];
  const marks = rated ? 5 : 3;
  let rater = "", waiting = [], trial = null, stacks = [], slice = session.first;
  let answer = null, given = {}, since = 0, seconds = 0, busy = false;

  host.classList.add("judge");
  host.tabIndex = -1;
  host.dataset.lmSuppressShortcuts = "true"; // Jupyter would take A, B and S for commands on cells
  host.setAttribute("role", "group");
  host.setAttribute("aria-label", session.question);
  host.addEventListener("keydown", key);

  function element(name, text, parent, attributes) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    (parent || host).appendChild(made);
    return made;
  }

  function button(text, act, parent, attributes) {
    const made = element("button", text, parent, { type: "button", ...attributes });
    made.addEventListener("click", act);
    return made;
  }

  function welcome() {
    host.replaceChildren();
    element("p", session.question, host, { class: "judge-question" });
    element("p", session.help);
    const form = element("form");
    let name = null;
    if (port.asks) {
      const label = element("label", "Your name or a pseudonym: ", form);
      name = element("input", "", label, { maxlength: "40", autocomplete: "off", required: "" });
    }
    element("button", "Begin (Enter)", form, { type: "submit" });
    if (port.fresh) {
      const words = "Begin with rats made now";
      button(words, () => { if (form.reportValidity()) again(name.value.trim(), (text) => { note.textContent = text; }); }, form);
    }
    const note = element("p", "", host, { role: "alert" });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const slow = setTimeout(() => { note.textContent = "Waiting for the kernel …"; }, 3000);
      rater = name ? name.value.trim() : "";
      port.open(rater).then((done) => {
        waiting = [...Array(session.trials).keys()].filter((number) => !done.includes(number));
        next();
      }).catch((error) => { note.textContent = error.message || error; }).finally(() => clearTimeout(slow));
    });
    if (name) name.addEventListener("keydown", (event) => event.stopPropagation());
  }

  // the same with other scans, which are made now; `say` hears how far it is
  function again(name, say) {
    const controls = [...host.querySelectorAll("button, input")], set = (off) => controls.forEach((one) => { one.disabled = off; });
    set(true); // nothing else begins meanwhile
    port.open(name).then(() => port.fresh(say)).then(([other, own]) => own.open(name).then(() => {
      [session, port] = [other, { ...own, fresh: port.fresh }];
      rater = name;
      waiting = [...Array(session.trials).keys()];
      next();
    })).catch((error) => { say(error.message || String(error)); set(false); });
  }

  function next() {
    if (!waiting.length) { finish(); return; }
    trial = waiting[0];
    [answer, given, slice, stacks] = [null, {}, session.first, []];
    layout();
    const wanted = trial, slow = patience();
    port.pictures(trial).then((addresses) => Promise.all(addresses.map(load))).then((images) => {
      if (wanted !== trial) return;
      stacks = images;
      say("");
      draw();
      since = performance.now();
    }).catch((error) => say("The scan did not come: " + (error.message || error))).finally(() => clearTimeout(slow));
  }

  function patience() { return setTimeout(() => say("Waiting for the kernel …"), 3000); }

  function load(address) {
    const image = new Image();
    image.src = address;
    return image.decode().then(() => image);
  }

  function layout() {
    host.replaceChildren();
    const done = session.trials - waiting.length;
    element("p", session.question, host, { class: "judge-question" });
    const line = element("p", `Trial ${done + 1} of ${session.trials} `, host, { "aria-live": "polite" });
    element("progress", "", line, { max: session.trials, value: done, "aria-label": "trials answered" });
    const row = element("div", "", host, { class: "judge-scans" });
    for (const side of two ? ["A", "B"] : [""]) {
      const box = element("div", side, row, { class: "judge-scan" });
      element("canvas", "", box, { width: 6 * session.columns, height: 6 * session.rows, role: "img" });
    }
    const scroll = element("label", "slice ", host, { class: "judge-slices" });
    const range = element("input", "", scroll, { type: "range", min: 0, max: session.depth - 1, tabindex: -1 });
    range.addEventListener("input", () => { slice = +range.value; draw(); });
    element("output", "", scroll);
    if (rated) {
      element("p", "1 very poor, 5 as a good real scan. Backspace goes one question back.");
      session.questions.forEach((name) => scale(name, name));
    } else {
      const row = element("div", "", host, { class: "judge-row", role: "group", "aria-label": "answer" });
      for (const [press, value, words] of choices) {
        button(`${words} (${press.toUpperCase()})`, () => choose(value), row, { "data-value": value });
      }
      scale("", "How sure?");
    }
    element("p", "", host, { role: "alert", class: "judge-note" });
    const notice = port.notice ? port.notice() : "";
    if (notice) element("p", notice, host, { role: "alert" });
    if (port.save) button("Save my answers so far", () => port.save(), host, { class: "judge-save" });
    mark();
    host.focus({ preventScroll: true });
  }

  function scale(name, words) {
    const row = element("div", words + " ", host, { class: "judge-row", role: "group", "aria-label": words });
    row.dataset.scale = name;
    for (let value = 1; value <= marks; value++) {
      const text = rated ? String(value) : `${session.sure[value]} (${value})`;
      button(text, () => rate(name, value), row, { "data-value": value });
    }
  }

  function draw() {
    host.querySelectorAll("canvas").forEach((canvas, place) => {
      const pen = canvas.getContext("2d"), { rows, columns } = session, mm = canvas.width / session.mm[1];
      pen.imageSmoothingQuality = "high";
      pen.clearRect(0, 0, canvas.width, canvas.height);
      if (!stacks.length) return;
      pen.drawImage(stacks[place], 0, slice * rows, columns, rows, 0, 0, canvas.width, canvas.height);
      pen.fillStyle = "#fff";
      pen.font = "16px sans-serif";
      pen.fillRect(canvas.width - 12 - 5 * mm, canvas.height - 14, 5 * mm, 3);
      pen.fillText("5 mm", canvas.width - 12 - 5 * mm, canvas.height - 20);
      pen.fillText("L", 6, canvas.height / 2);
      pen.fillText("R", canvas.width - 18, canvas.height / 2);
      pen.fillText("D", canvas.width / 2 - 5, 18);
      const side = two ? "scan " + "AB"[place] : "the scan";
      canvas.setAttribute("aria-label", `${side}, coronal slice ${slice + 1} of ${session.depth}, counted from the tail`);
    });
    const range = host.querySelector("input[type=range]");
    if (!range) return;
    range.value = slice;
    range.setAttribute("aria-valuetext", `slice ${slice + 1} of ${session.depth}`);
    host.querySelector("output").textContent = `${slice + 1} of ${session.depth} (arrow keys)`;
  }

  function mark() {
    const question = session.questions.find((name) => !(name in given));
    host.querySelectorAll(".judge-row").forEach((row) => {
      const value = "scale" in row.dataset ? given[row.dataset.scale] : answer;
      row.classList.toggle("judge-next", rated ? row.dataset.scale === question : "scale" in row.dataset === (answer !== null));
      for (const one of row.querySelectorAll("button")) {
        one.setAttribute("aria-pressed", String(one.dataset.value === String(value)));
        one.disabled = "scale" in row.dataset && !rated && answer === null;
      }
    });
  }

  function say(text) { const note = host.querySelector(".judge-note"); if (note) note.textContent = text; }

  function choose(value) {
    if (!stacks.length || busy) return;
    answer = value;
    seconds = (performance.now() - since) / 1000;
    say("");
    mark();
    host.focus({ preventScroll: true });
  }

  function rate(name, value) {
    if (!stacks.length || busy) return;
    if (rated) {
      given[name] = value;
      seconds = (performance.now() - since) / 1000;
      mark();
      if (session.questions.some((one) => !(one in given))) { host.focus({ preventScroll: true }); return; }
      send({ answer: given, confidence: null });
    } else if (answer !== null) {
      send({ answer, confidence: value });
    }
  }

  function send(what) {
    busy = true;
    const slow = patience();
    port.answer(trial, { ...what, seconds: Math.round(seconds * 1000) / 1000 }).then(() => {
      waiting.shift();
      busy = false;
      next();
    }).catch((error) => { // nothing moves on until it is kept
      busy = false;
      say("Not kept: " + (error.message || error) + ". Press the last key again to try again.");
    }).finally(() => clearTimeout(slow));
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || trial === null) return;
    if (event.target.tagName === "INPUT" && event.target.type !== "range") return;
    if (event.repeat && !event.key.startsWith("Arrow")) return; // a key held down is one answer
    const press = event.key.toLowerCase(), steps = { arrowleft: -1, arrowdown: -1, arrowright: 1, arrowup: 1 };
    const choice = choices.find(([one]) => one === press), last = session.depth - 1;
    if (press in steps) slice = Math.min(last, Math.max(0, slice + steps[press]));
    else if (press === "home") slice = 0;
    else if (press === "end") slice = last;
    else if (choice) choose(choice[1]);
    else if (press >= "1" && press <= String(marks) && press.length === 1) {
      const open = session.questions.filter((name) => !(name in given));
      rate(rated ? open[0] || session.questions[session.questions.length - 1] : "", +press);
    } else if (press === "backspace") {
      if (rated) delete given[session.questions.filter((name) => name in given).pop()];
      answer = null;
      mark();
    } else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  }

  function finish() {
    trial = null;
    host.replaceChildren();
    element("p", "All trials are answered. Thank you.", host, { class: "judge-question", "aria-live": "polite" });
    const box = element("div", "Working it out …", host, { class: "judge-result" });
    if (port.save) button("Save my answers as a file", () => port.save(), host, { class: "judge-save" });
    if (port.fresh) {
      const note = element("p", "", host, { role: "alert" });
      button("Again, with rats made now", () => again(rater, (text) => { note.textContent = text; }), host);
    }
    host.focus({ preventScroll: true });
    port.finish().then((text) => { box.innerHTML = text; }).catch((error) => { box.textContent = String(error.message || error); });
  }

  welcome();
}
