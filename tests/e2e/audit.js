// What is wrong with a page for those who do not see it, see it badly, or see little of it at once.
() => {
  const wrong = [], shown = element => element.checkVisibility();
  const name = element => (element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent
    || (element.getAttribute("aria-labelledby") && document.getElementById(element.getAttribute("aria-labelledby"))?.textContent)
    || "").trim();
  const tell = (what, element) => wrong.push(`${what}: ${element.outerHTML.slice(0, 120)}`);
  if (!document.documentElement.lang) wrong.push("the page has no language");
  if (!document.title.trim()) wrong.push("the page has no title");
  if (document.querySelectorAll("main").length !== 1) wrong.push("there must be one main");
  if (document.querySelectorAll("h1").length !== 1) wrong.push("there must be one h1");
  for (const landmark of ["header", "main", "footer"]) if (!document.querySelector(landmark)) wrong.push(`no ${landmark}`);
  const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
  for (const id of new Set(ids)) if (ids.filter(one => one === id).length > 1) wrong.push(`two elements are ${id}`);
  for (const element of document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary, nav, [role]"))
    if (shown(element) && !name(element)) tell("without a name", element);
  for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
    for (const kind of ["aria-labelledby", "aria-describedby"])
      if (element.hasAttribute(kind) && !document.getElementById(element.getAttribute(kind))) tell("says nothing", element);
  for (const table of document.querySelectorAll("table"))
    if ([...table.querySelectorAll("th")].some(cell => !cell.scope)) tell("a heading without scope", table);
  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3")) {
    const next = Number(heading.nodeName[1]);
    if (next > level + 1) tell("a level of headings is left out", heading);
    level = next;
  }
  if (document.querySelector("[onclick], script:not([src]), style")) wrong.push("there is an inline script or style");

  // Contrast (WCAG 2, 1.4.3): of each text against the nearest painted background.
  const parts = colour => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !shown(element) || element.closest("svg, .unseen, script, option, progress")) continue;
    const [a, b] = [luminance(parts(getComputedStyle(element).color)), luminance(background(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) tell(`contrast ${ratio.toFixed(2)} of "${text.data.trim().slice(0, 30)}"`, element);
  }
  const beyond = document.documentElement.scrollWidth - innerWidth;
  if (beyond > 0) wrong.push(`the page is ${beyond} px too wide for ${innerWidth} px`);
  return wrong;
}
