// The port of a page without a kernel: pictures are in the page, answers stay in the browser until they are saved.

const unhidden = (text) => JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(text), (c) => c.charCodeAt(0))));

function pagePort(session, pictures, stubs, fresh) {
  let rater = "", lines = [], kept = true;
  const place = () => `judge-${session.id}-${rater}`;
  const right = (line) => line.task === "pair" ? line.sources["AB".indexOf(line.answer)] === "real"
    : (line.answer === "real") === (line.sources[0] === "real");

  function stored() { // another tab may have answered since
    try { return JSON.parse(localStorage.getItem(place())) || []; } catch (error) { return []; }
  }

  function keep(line) {
    const before = [...stored(), ...lines].filter((one, at, all) => all.findIndex((other) => other.trial === one.trial) === at);
    lines = before.some((one) => one.trial === line.trial) ? before : [...before, line];
    try { localStorage.setItem(place(), JSON.stringify(lines)); kept = true; } catch (error) { kept = false; }
  }

  function notice() { return kept ? "" : "This browser keeps nothing: save your answers before you leave the page."; }

  function open(name) {
    if (!/^[\p{L}\p{N}_.-][\p{L}\p{N}_ .-]{0,39}$/u.test(name)) return Promise.reject("A name has up to 40 letters, digits, spaces, points, - and _.");
    if (/^(simulated|model)/i.test(name)) return Promise.reject("Names that begin like this are kept for raters who are not human.");
    rater = name;
    lines = stored();
    return Promise.resolve(lines.map((line) => line.trial));
  }

  function save() {
    const text = lines.map((line) => JSON.stringify(line) + "\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
    link.download = `${session.task}-${session.id}-${rater.replaceAll(" ", "_")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function answer(number, given) {
    const time = new Date().toISOString().slice(0, 19) + "+00:00";
    keep({ ...stubs[number], kind: "human", rater, ...given, time });
    return Promise.resolve();
  }

  function wilson(k, n) { // 95 %
    const z = 1.959963984540054, p = k / n, middle = (p + z * z / (2 * n)) / (1 + z * z / n);
    const half = z / (1 + z * z / n) * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    return [middle - half, middle + half].map((end) => `${Math.round(100 * end)} %`).join(" to ");
  }

  const safe = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const table = (head, rows) => `<table><thead><tr>${head.map((cell) => `<th scope="col">${safe(cell)}</th>`).join("")}</tr></thead><tbody>`
    + rows.map((row) => `<tr>${row.map((cell) => `<td>${safe(cell)}</td>`).join("")}</tr>`).join("") + "</tbody></table>";

  function finish() {
    const mine = [...lines].sort((one, other) => one.trial - other.trial), sources = [...new Set(mine.flatMap((line) => line.sources))].sort();
    let told = "";
    if (session.task === "rating") {
      told = table(["", ...session.questions], sources.map((source) => {
        const own = mine.filter((line) => line.sources[0] === source);
        return [source, ...session.questions.map((name) => (own.reduce((sum, line) => sum + line.answer[name], 0) / own.length).toFixed(2))];
      }));
    } else if (session.task === "preference") {
      told = table(["", "preferred", "of"], sources.map((source) => {
        const met = mine.filter((line) => line.sources.includes(source));
        return [source, met.filter((line) => line.sources["AB".indexOf(line.answer)] === source).length, met.length];
      }));
    } else {
      const k = mine.filter(right).length, shown = (line) => line.sources.find((source) => source !== "real") || "real";
      told = `<p><strong class="judge-score">${k} of ${mine.length} right</strong>, 95 % interval ${wilson(k, mine.length)}; a guess gets half.</p>`
        + table(["shown", "right", "of"], [...new Set(mine.map(shown))].sort().map((source) => {
          const own = mine.filter((line) => shown(line) === source);
          return [source, own.filter(right).length, own.length];
        })) + "<details><summary>every trial</summary>"
        + table(["trial", "shown", "your answer", ""], mine.map((line) => [line.trial + 1, line.sources.join(" | "), line.answer, right(line) ? "right" : "wrong"]))
        + "</details>";
    }
    return Promise.resolve(told + "<p>Save the file and give it to <code>labkit.evidence.judging</code> for the other statistics, alone or with other raters'.</p>");
  }

  return { asks: true, open, save, answer, finish, notice, fresh, pictures: (number) => Promise.resolve(pictures[number]) };
}
