// Makes one tree of elements like another by changing only what differs, so that focus, selection, scroll positions,
// open details and half-filled forms stay. Elements with a data-key are found again wherever they have moved.
"use strict";
const morph = (() => {
  const keyOf = node => (node.nodeType === Node.ELEMENT_NODE ? node.dataset.key || node.id : "") || "";

  function isSame(a, b) {
    return a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
  }

  function attributes(old, next) {
    for (const { name } of [...old.attributes]) {
      // What a visitor has opened stays open.
      if (!next.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
  }

  function node(old, next) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue;
      return;
    }
    if (old.nodeName === "TIME" && old.dateTime === next.dateTime) return; // its words are relative by now
    if (old.nodeName === "FORM" && old.contains(document.activeElement)) return; // somebody is filling it in
    if (old.dataset.chart === undefined) {
      attributes(old, next);
      children(old, next);
    } else {
      // What else a chart has and holds is of the library that draws it.
      for (const name of ["data-chart", "aria-label"]) old.setAttribute(name, next.getAttribute(name));
    }
  }

  function children(old, next) {
    const keyed = new Map([...old.childNodes].filter(keyOf).map(child => [keyOf(child), child]));
    let here = old.firstChild;
    for (const wanted of [...next.childNodes]) {
      const known = keyOf(wanted) ? keyed.get(keyOf(wanted)) : undefined;
      if (known !== undefined && isSame(known, wanted)) {
        if (known === here) here = here.nextSibling;
        else old.insertBefore(known, here);
        node(known, wanted);
      } else if (here !== null && !keyOf(here) && isSame(here, wanted)) {
        node(here, wanted);
        here = here.nextSibling;
      } else {
        old.insertBefore(document.importNode(wanted, true), here);
      }
    }
    while (here !== null) {
      const gone = here;
      here = here.nextSibling;
      gone.remove();
    }
  }

  return node;
})();
