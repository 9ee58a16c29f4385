// Keeps a page as the services are now: asks for it again and puts in place the parts that have changed. Where the console
// itself does not answer, the page says since when it shows the past. Without this script the browser reloads the page.
"use strict";

const away = document.getElementById("away");
const said = document.getElementById("said");
let seen = new Date();

function tell(problem) {
  const words = problem ? `${problem} What you see is from ${seen.toISOString().slice(11, 19)} UTC.` : "";
  // Set once: a screen reader says an alert each time that it changes.
  if (away.textContent !== words) away.textContent = words;
  away.hidden = !problem;
}

// Whoever hears the page learns that a job has come to another state, and not each of its steps.
function announce(before, after) {
  const states = (place) => new Map([...place.querySelectorAll("[data-key]")].map((one) => [one.dataset.key, one.dataset.said]));
  const [old, fresh] = [states(before), states(after)];
  const changes = [...fresh].filter(([key, word]) => old.has(key) && old.get(key) !== word);
  if (changes.length) said.textContent = changes.map(([key, word]) => `${key}: ${word}`).join("; ");
}

function replace(part, fresh) {
  if (part.innerHTML === fresh.innerHTML) return;
  const held = part.contains(document.activeElement) ? document.activeElement : null;
  const places = [...part.querySelectorAll(".wide")].map((one) => one.scrollLeft);
  announce(part, fresh);
  part.replaceChildren(...fresh.childNodes);
  part.querySelectorAll(".wide").forEach((one, index) => { one.scrollLeft = places[index] ?? 0; });
  if (held) {
    // The keyboard stays where it was: on the link of the same address, or on the same table.
    const name = held.getAttribute("href") ? "href" : "aria-label";
    const again = [...part.querySelectorAll(`[${name}]`)].find((one) => one.getAttribute(name) === held.getAttribute(name));
    (again ?? document.getElementById("main")).focus({ preventScroll: true });
  }
}

async function refresh() {
  let answer;
  try {
    answer = await fetch(location.href, { signal: AbortSignal.timeout(30000) });
  } catch {
    tell("The console does not answer; start it again with `murmura console`.");
    return;
  }
  if (answer.status === 403 && !answer.headers.get("content-type").startsWith("text/html")) {
    tell("The console was started again; open the new address that it printed.");
    return;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  seen = new Date();
  tell("");
  const names = (root) => [...root.querySelectorAll("main > section")].map((part) => part.id).join();
  if (names(page) === names(document)) {
    for (const part of document.querySelectorAll("main > section")) replace(part, page.getElementById(part.id));
  } else {
    replace(document.getElementById("main"), page.getElementById("main"));
  }
  document.body.dataset.refresh = page.body.dataset.refresh;
}

async function watch() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000 * Number(document.body.dataset.refresh)));
    if (!document.hidden) await refresh();
  }
}

watch();
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
