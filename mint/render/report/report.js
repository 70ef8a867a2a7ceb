// Draws the charts and fills the tables of the page from its data.
const data = JSON.parse(document.getElementById("data").textContent);

for (const [id, spec] of Object.entries(data.charts)) {
  vegaEmbed(document.getElementById(id), spec, {actions: false, renderer: "svg"});
}

for (const [id, table] of Object.entries(data.tables)) showTable(document.getElementById(id), table);

function showTable(place, {columns, rows}) {
  const table = document.createElement("table");
  const body = table.createTBody();
  let order = 1, sorted = -1, words = "";

  function fill() {
    const shown = rows.filter((row) => row.join(" ").toLowerCase().includes(words));
    body.replaceChildren(...shown.map((row) => {
      const line = document.createElement("tr");
      for (const value of row) {
        const cell = line.insertCell();
        cell.textContent = typeof value === "number" ? value.toLocaleString("en", {maximumSignificantDigits: 12}) : value;
        if (typeof value === "number") cell.className = "number";
      }
      return line;
    }));
  }

  function sort(index) {
    order = sorted === index ? -order : 1;
    sorted = index;
    const empty = (value) => value === null;
    rows.sort(({[index]: a}, {[index]: b}) =>
      empty(a) - empty(b) || order * (typeof a === "number" ? a - b : String(a).localeCompare(String(b))));
    head.querySelectorAll("th").forEach((cell, column) =>
      cell.setAttribute("aria-sort", column !== index ? "none" : order > 0 ? "ascending" : "descending"));
    fill();
  }

  const head = table.createTHead().insertRow();
  columns.forEach((name, index) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => sort(index);
    const cell = head.appendChild(document.createElement("th"));
    cell.append(button);
    if (rows.some((row) => typeof row[index] === "number")) cell.className = "number";
  });
  if (rows.length > 12) {
    const filter = document.createElement("input");
    filter.placeholder = "Filter";
    filter.ariaLabel = "Filter";
    filter.oninput = () => { words = filter.value.toLowerCase(); fill(); };
    place.append(filter);
  }
  place.append(table);
  fill();
}
