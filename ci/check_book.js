// What ci/check_book asks of every page, in the page: a list of faults in words.
async () => {
  const faults = [], images = [...document.querySelectorAll("article img, main img")];
  // an example of the reference may show the error that it teaches
  const tracebacks = [...document.querySelectorAll("pre")].filter((pre) => pre.innerText.includes("Traceback (most recent call last)"));
  if (tracebacks.some((pre) => !pre.closest(".doctest"))) faults.push("a saved traceback");
  for (const image of images) {
    const name = (image.getAttribute("src") || "").slice(0, 60), alt = image.getAttribute("alt");
    if (getComputedStyle(image).display === "none" && image.closest(".interactive-figure")) continue; // drawn instead
    image.loading = "eager";
    try { await image.decode(); } catch (error) { faults.push("an image that does not load: " + name); continue; }
    if (!alt || /^[_./]*(images|assets)?[/]?[0-9a-f]{20,}/.test(alt)) faults.push("an image without words: " + name);
    const canvas = document.createElement("canvas"), side = 96, pen = canvas.getContext("2d");
    [canvas.width, canvas.height] = [side, side];
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, side, side);
    pen.drawImage(image, 0, 0, side, side);
    let data;
    try { data = pen.getImageData(0, 0, side, side).data; } catch (error) { continue; } // from the disk nothing may be read
    let sum = 0, squares = 0;
    for (let i = 0; i < data.length; i += 4) { sum += data[i]; squares += data[i] * data[i]; }
    const n = data.length / 4;
    if (squares / n - (sum / n) ** 2 < 4) faults.push("a blank image: " + name);
  }
  for (const figure of document.querySelectorAll(".interactive-figure")) {
    if (!figure.querySelector(".main-svg")) faults.push("an interactive figure that was not drawn");
  }
  for (const card of document.querySelectorAll(".card-frames")) {
    const input = card.querySelector("input"), picture = card.querySelector("[role=img]");
    const seen = () => [getComputedStyle(picture).backgroundPosition, picture.getAttribute("aria-label"), card.querySelector("output").textContent];
    const before = seen(), start = input.value;
    input.value = input.value === input.max ? input.min : input.max;
    input.dispatchEvent(new Event("input"));
    seen().forEach((value, i) => { if (value === before[i]) faults.push(`a slider that changes no ${["picture", "description", "text"][i]}: ${card.innerText.slice(0, 40)}`); });
    input.value = start;
    input.dispatchEvent(new Event("input"));
  }
  for (const cards of document.querySelectorAll(".cards")) {
    const select = cards.querySelector("select"), shown = () => [...cards.querySelectorAll(".card-frames")].filter((card) => card.offsetHeight).length;
    const first = shown();
    select.selectedIndex = select.length - 1;
    select.dispatchEvent(new Event("change"));
    if (first !== 1 || shown() !== 1 || !cards.lastElementChild.offsetHeight) faults.push("a list that does not choose one card: " + cards.innerText.slice(0, 40));
    select.selectedIndex = 0;
    select.dispatchEvent(new Event("change"));
  }
  for (const test of document.querySelectorAll(".judge")) {
    const name = test.querySelector("form input"), form = test.querySelector("form");
    if (!name || !form) { faults.push("a judging test that does not begin"); continue; }
    name.value = "check";
    form.requestSubmit();
    await new Promise((done) => setTimeout(done, 600));
    if (!test.querySelector("canvas[aria-label]")) faults.push("a judging test that shows no scan");
  }
  if (document.querySelector("mjx-merror")) faults.push("an equation that is no TeX: " + document.querySelector("mjx-merror").textContent.slice(0, 60));
  if (document.querySelector(".math") && !document.querySelector("mjx-container")) faults.push("equations that are not set");
  return faults;
}
