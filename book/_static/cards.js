// On a phone a table of four columns or more becomes a card for each row, with the columns' names beside the values.
// Cells keep the roles of a table, which CSS takes from them. Where cards would be a long way to scroll, or cells reach
// over several rows, it stays a table.
const MOST_CELLS = 90;
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table")) {
    const head = table.tHead && table.tHead.rows.length === 1 ? [...table.tHead.rows[0].cells] : [];
    const cells = table.querySelectorAll("tbody :is(td, th)").length;
    if (head.length < 4 || cells > MOST_CELLS || table.querySelector("[rowspan], [colspan]")) continue;
    const names = head.map((cell) => cell.textContent.trim());
    const role = (selector, name) => table.querySelectorAll(selector).forEach((part) => part.setAttribute("role", name));
    table.setAttribute("role", "table");
    role("thead, tbody", "rowgroup");
    role("tr", "row");
    role("thead th", "columnheader");
    role("tbody th", "rowheader");
    role("td", "cell");
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, place) => {
        cell.dataset.name = names[place] || "";
        if (!cell.childNodes.length) return;
        const value = document.createElement("span"); // one item beside the name, whatever a cell is made of
        value.append(...cell.childNodes);
        cell.append(value);
      });
    }
    table.classList.add("row-cards");
  }
});
