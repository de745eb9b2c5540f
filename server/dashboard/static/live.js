// Keeps a page as the coordinator is: when it tells of a change, the page is asked for anew and morphed into place.
"use strict";
(() => {
  const main = document.querySelector("main[data-live]");
  const link = document.getElementById("link");
  if (main === null || link === null) return;

  const LEAST_MS = 1000; // between two answers, and four times as long as the last one took
  const POLL_MS = 5000; // where no events come
  const STILL_MS = 30000; // what no event tells of
  const KINDS = ["job", "round", "update", "device", "model", "reset"];
  const topic = main.dataset.live;
  let events = null;
  let hears = false;
  let timer = 0;
  let due = Infinity;
  let busy = false;
  let pause = LEAST_MS;
  let last = performance.now();
  let seen = new Date();

  function tell(kind, words) {
    link.hidden = false;
    link.className = `link ${kind}`;
    if (link.textContent !== words) link.textContent = words;
  }

  const isLive = () => tell("good", hears ? "live" : topic === "slow" ? "every 30 s" : "every 5 s");

  function plan(delay) {
    const at = Math.max(performance.now() + delay, last + pause);
    if (busy || at >= due) return;
    due = at;
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(0, at - performance.now()));
  }

  const idle = () => plan(hears || topic === "slow" ? STILL_MS : POLL_MS);

  async function refresh() {
    due = Infinity;
    if (document.hidden) return; // asked for when somebody looks
    busy = true;
    const begun = performance.now();
    try {
      const answer = await fetch(location.href, { cache: "no-cache", signal: AbortSignal.timeout(15000) });
      if (new URL(answer.url).pathname === "/login") return location.reload();
      if (!answer.ok) throw new Error(answer.statusText);
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = next.title;
      morph(main, next.getElementById("main"));
      page.update();
      document.dispatchEvent(new Event("refreshed"));
      seen = new Date();
      isLive();
    } catch {
      tell("bad", `link lost, as of ${seen.toLocaleTimeString()}`);
    }
    busy = false;
    last = performance.now();
    pause = Math.max(LEAST_MS, 4 * (last - begun));
    idle();
  }

  function listen() {
    if (topic === "slow" || events !== null) return;
    events = new EventSource("/api/v1/events" + (topic === "all" ? "" : `?job=${encodeURIComponent(topic)}`));
    events.addEventListener("open", () => {
      hears = true;
      plan(0); // what happened in between
    });
    for (const kind of KINDS) events.addEventListener(kind, () => plan(100));
    events.addEventListener("error", () => {
      hears = false;
      // While it connects again by itself the coordinator may be away; once it gives up, there are no events here.
      if (events.readyState === EventSource.CLOSED) events = null;
      plan(0);
    });
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      events?.close();
      events = null;
      hears = false;
    } else {
      listen();
      plan(0);
    }
  });
  tell("", "connecting");
  if (topic === "slow") isLive();
  listen();
  idle();
})();
