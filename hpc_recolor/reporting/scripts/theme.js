"use strict";
// Shared by all parts of the page: its data, the theme, printing, and the section in view.
const page = {
  data: JSON.parse(document.getElementById("data").textContent),
  printing: false,
  onTheme: [], // called when colors change
  onPrint: [], // called with true before and false after printing
  source: (number) => page.data.prefix + page.data.images[number],
  color: (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim(),
  make(tag, className, attributes = {}) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  },
};

(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preference.matches);

  function show() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    for (const call of page.onTheme) call();
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* no storage: for this visit only */ }
    show();
  });
  preference.addEventListener("change", show);
  show();
})();

(() => {
  let opened = [];
  function print(begins) {
    if (begins === page.printing) return;
    page.printing = begins;
    if (begins) {
      opened = [...document.querySelectorAll("details:not([open])")];
      for (const one of opened) one.open = true;
    } else for (const one of opened) one.open = false;
    for (const call of page.onPrint) call(begins);
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  const media = matchMedia("print");
  media.addEventListener("change", () => print(media.matches));
})();

(() => {
  const links = new Map([...document.querySelectorAll("nav.bar a")].map((link) => [link.hash.slice(1), link]));
  const bar = document.querySelector("nav.bar ul");
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target.id);
    const current = [...links.keys()].find((id) => seen.has(id));
    for (const [id, link] of links) {
      if (id !== current) link.removeAttribute("aria-current");
      else if (!link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "true");
        bar.scrollTo({ left: link.offsetLeft - bar.offsetLeft - 24 }); // on phones the bar is wider than the page
      }
    }
  }, { rootMargin: "-20% 0px -60% 0px" });
  for (const id of links.keys()) observer.observe(document.getElementById(id));
})();
