// What pages do without asking the coordinator: times told relative to now, copying, light and dark.
"use strict";
const page = (() => {
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  function relative(seconds) {
    const far = Math.abs(seconds);
    if (far < 1) return "now";
    const [unit, size] = UNITS.find(([, size]) => far >= 2 * size) || ["s", 1];
    const words = `${Math.floor(far / size)} ${unit}`;
    return seconds < 0 ? `${words} ago` : `in ${words}`;
  }

  function tellTimes() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const words = relative((Date.parse(time.dateTime) - Date.now()) / 1000);
      if (time.textContent !== words) time.textContent = words;
    }
  }

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen === undefined ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
  }

  function tellTheme() {
    const button = document.getElementById("theme");
    button.hidden = false;
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show in ${isDark() ? "light" : "dark"} colours`);
    document.dispatchEvent(new Event("theme"));
  }

  document.getElementById("theme").addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try {
      localStorage.setItem("theme", chosen);
    } catch {
      // No storage: the choice lasts as long as the page.
    }
    tellTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tellTheme);

  document.addEventListener("click", async event => {
    const button = event.target.closest("button[data-copy]");
    if (button === null) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });

  // A file that is chosen is put into a form's text, to be looked over before it is sent.
  for (const chooser of document.querySelectorAll("input[data-into]")) {
    chooser.closest("label").hidden = false;
    chooser.addEventListener("change", async () => {
      const [file] = chooser.files;
      if (file === undefined) return;
      document.getElementById(chooser.dataset.into).value = await file.text();
      const kind = file.name.split(".").pop().toLowerCase().replace("yml", "yaml");
      const kinds = chooser.form.elements.kind;
      if ([...kinds.options].some(option => option.value === kind)) kinds.value = kind;
    });
  }

  // A table that scrolls is reached by the keyboard; one that fits needs no stop.
  function stops() {
    for (const box of document.querySelectorAll(".scroll")) {
      const wanted = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight ? "0" : null;
      if (wanted === null) box.removeAttribute("tabindex");
      else box.setAttribute("tabindex", wanted);
    }
  }

  function update() {
    tellTimes();
    stops();
  }

  addEventListener("resize", stops);
  setInterval(tellTimes, 1000);
  tellTheme();
  update();
  return { isDark, update };
})();
