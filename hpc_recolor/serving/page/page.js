"use strict";

// Photos are dropped, pasted or chosen; each is sent to /api/preview, and to /api/colorize once it is downloaded.
// The server keeps nothing: a changed vividness sends the preview again, of which only the luminance counts.

const AT_A_TIME = 2; // requests
const PAUSE_MS = 120; // after a slider moved, before the photo is colored anew
const MOST_RETRIES = 100;
const ZIP_BYTES = 0xffffffff; // what a zip without extensions can hold

const one = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const page = {
  bar: one(".bar"), status: one(".status"), zip: one(".zip"), vividness: one(".vivid.all input"),
  problems: one(".problems"), photos: one(".photos"), files: one("#files"), over: one(".over"),
};
const cards = new Map(); // element -> Card, in the order of the page
let info = { vividness: 1, max_bytes: 1e8, page_photos: 100 };
let zipping = null; // AbortController while all are downloaded

/* Requests */

class Refusal extends Error {}

/** Runs a few functions at a time. */
class Turns {
  #free = AT_A_TIME;
  #waiting = [];

  async take(work, { first = false, signal } = {}) {
    if (!this.#free) await new Promise((go) => (first ? this.#waiting.unshift(go) : this.#waiting.push(go)));
    else this.#free--;
    try {
      signal?.throwIfAborted();
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free++;
    }
  }
}
const turns = new Turns();

/** The colored image of a photo, as a Blob. Waits while the server is busy. Throws Refusal with a line for the user. */
async function color(kind, photo, vividness, options = {}) {
  const { signal } = options;
  const url = `/api/${kind}?vividness=${vividness}`;
  for (let tries = 0; tries < MOST_RETRIES; tries++) {
    const answer = await turns.take(() => ask(url, photo, signal), options);
    if (answer instanceof Blob) return answer;
    await pause(1000 * answer, signal);
  }
  throw new Refusal("the server is busy; try again later");
}

/** A Blob, or the seconds after which to ask again. */
async function ask(url, photo, signal) {
  let body, answer;
  try {
    body = await photo.arrayBuffer();
  } catch {
    throw new Refusal("cannot be read from this disk; it may be a folder");
  }
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    answer = await fetch(url, { method: "POST", body, headers, signal });
    if (answer.ok) return await answer.blob();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal("the server does not answer; it may have been stopped");
  }
  if (answer.status === 503) return Number(answer.headers.get("Retry-After")) || 3;
  const { detail } = await answer.json().catch(() => ({}));
  throw new Refusal(detail || `the server failed (${answer.status})`);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/* One photo */

class Card {
  constructor(file) {
    this.file = file;
    this.name = safeName(file.name);
    this.element = one("#photo").content.firstElementChild.cloneNode(true);
    const at = (selector) => one(selector, this.element);
    Object.assign(this, { view: at(".view"), split: at(".split"), slider: at(".controls .vivid input") });
    Object.assign(this, { gray: at(".gray"), colored: at(".colored"), button: at(".download") });
    this.problem = at(".problem");
    at("bdi").textContent = this.name;
    at("h2").title = this.name;
    this.split.setAttribute("aria-label", `Gray or colored: ${this.name}`);
    this.slider.setAttribute("aria-label", `Colors of ${this.name}, from faithful to vivid`);
    this.button.setAttribute("aria-label", `Download ${this.name}`);
    at(".remove").setAttribute("aria-label", `Remove ${this.name}`);
    this.slider.value = page.vividness.value;
    this.split.addEventListener("input", () => this.showSplit());
    this.slider.addEventListener("input", () => this.recolor());
    this.button.addEventListener("click", () => this.download());
    at(".remove").addEventListener("click", () => removeCard(this));
    at(".enlarge").addEventListener("click", (event) => this.enlarge(event.currentTarget));
    this.showSplit();
    this.sayVividness();
    this.leaving = new AbortController();
    this.showOriginal();
  }

  /** In gray, while it is being colored, if the browser can. */
  showOriginal() {
    const image = new Image();
    const address = URL.createObjectURL(this.file);
    const forget = () => URL.revokeObjectURL(address);
    image.onload = () => {
      one(".size", this.element).textContent = `${image.naturalWidth} \u00d7 ${image.naturalHeight}`;
      if (this.first) forget();
      else this.show(address, image.naturalWidth, image.naturalHeight);
    };
    image.onerror = forget;
    image.src = address;
  }

  show(address, width, height) {
    for (const image of [this.gray, this.colored]) image.src = address;
    if (this.address && this.address !== address) URL.revokeObjectURL(this.address);
    this.address = address;
    this.element.style.setProperty("--ratio", width / height);
  }

  async start() {
    this.vividness = this.slider.value;
    await this.showColored(this.file, { signal: this.leaving.signal });
    this.element.removeAttribute("aria-busy");
    this.element.classList.add("arriving");
    this.split.disabled = this.button.disabled = false;
    if (this.slider.value !== this.vividness) this.recolor();
  }

  async showColored(photo, options) {
    const blob = await color("preview", photo, this.vividness, options);
    const image = new Image();
    image.src = URL.createObjectURL(blob);
    await image.decode();
    options.signal.throwIfAborted();
    this.first ??= blob;
    this.show(image.src, image.naturalWidth, image.naturalHeight);
  }

  async recolor() {
    this.sayVividness();
    if (!this.first) return; // `start` looks again
    this.recoloring?.abort();
    this.recoloring = new AbortController();
    const signal = AbortSignal.any([this.recoloring.signal, this.leaving.signal]);
    try {
      await pause(PAUSE_MS, signal);
      this.vividness = this.slider.value;
      await this.showColored(this.first, { signal, first: true });
      this.problem.textContent = "";
    } catch (error) {
      if (!signal.aborted) this.problem.textContent = lineOf(error);
    }
  }

  sayVividness() {
    this.slider.setAttribute("aria-valuetext", `vividness ${Number(this.slider.value).toFixed(2)}`);
  }

  showSplit() {
    const gray = Number(this.split.value);
    this.view.style.setProperty("--split", `${gray}%`);
    this.split.setAttribute("aria-valuetext", `${gray} % gray, ${100 - gray} % colored`);
  }

  enlarge(button) {
    const large = this.element.classList.toggle("large");
    button.setAttribute("aria-pressed", large);
    this.element.scrollIntoView({ block: "nearest" });
  }

  /** Its full size. */
  result(signal) {
    return color("colorize", this.file, this.slider.value, { signal });
  }

  async download() {
    this.button.disabled = true;
    this.button.textContent = "Coloring\u2026";
    this.problem.textContent = "";
    try {
      save(await this.result(this.leaving.signal), `${stem(this.name)}.png`);
    } catch (error) {
      if (!this.leaving.signal.aborted) this.problem.textContent = lineOf(error);
    }
    this.button.disabled = false;
    this.button.textContent = "Download";
  }

  remove() {
    this.leaving.abort();
    this.element.remove();
    if (this.address) URL.revokeObjectURL(this.address);
  }
}

/* All photos */

async function addFiles(list) {
  const files = [...list]; // a drag's own list is empty once this waits
  await informed;
  const room = info.page_photos - cards.size;
  if (files.length > room) {
    tell("", `${info.page_photos} photos fit on this page; ${files.length - room} were left out`);
  }
  for (const file of files.slice(0, Math.max(0, room))) addFile(file);
}

async function addFile(file) {
  if (file.size > info.max_bytes) {
    return tell(file.name, `${Math.ceil(file.size / 1e6)} MB, more than ${info.max_bytes / 1e6} MB`);
  }
  const card = new Card(file);
  cards.set(card.element, card);
  page.photos.append(card.element);
  refresh();
  try {
    await card.start();
  } catch (error) {
    if (card.leaving.signal.aborted) return;
    removeCard(card);
    tell(file.name, lineOf(error));
  }
  refresh();
}

function removeCard(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  const focused = card.element.contains(document.activeElement);
  cards.delete(card.element);
  card.remove();
  refresh();
  if (focused) (next ? one(".remove", next) : one(".start .choose")).focus();
}

function refresh() {
  const done = [...cards.values()].filter((card) => card.first).length;
  document.body.classList.toggle("busy", cards.size > 0);
  page.bar.hidden = !cards.size;
  for (const part of all(".zip, .vivid.all, .clear")) part.hidden = cards.size < 2;
  page.zip.disabled = !done;
  if (!zipping) page.status.textContent = done < cards.size ? `coloring, ${done} of ${cards.size} done` : counted(done);
}

const counted = (number) => (number ? `${number} ${number === 1 ? "photo" : "photos"} colored` : "");

/** A line about a file that was refused. */
function tell(name, problem) {
  const line = document.createElement("li");
  const text = document.createElement("span");
  const title = document.createElement("bdi");
  title.textContent = name && safeName(name);
  text.append(title, name ? `: ${problem}` : problem);
  const close = one("#photo").content.querySelector(".remove").cloneNode(true);
  close.setAttribute("aria-label", "Close this message");
  close.addEventListener("click", () => line.remove());
  line.append(text, close);
  page.problems.append(line);
}

function lineOf(error) {
  if (error instanceof Refusal) return error.message;
  return error.name === "EncodingError" ? "the browser cannot show it" : String(error.message || error);
}

/* Downloads */

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function downloadAll() {
  if (zipping) return zipping.abort();
  zipping = new AbortController();
  page.zip.textContent = "Cancel";
  const chosen = [...cards.values()].filter((card) => card.first);
  const colored = [];
  try {
    for (const [number, card] of chosen.entries()) {
      page.status.textContent = `coloring at full size, ${number + 1} of ${chosen.length}`;
      await card.result(zipping.signal).then(
        (blob) => colored.push({ name: `${stem(card.name)}.png`, blob }),
        (error) => {
          if (zipping.signal.aborted) throw error;
          card.problem.textContent = lineOf(error);
        },
      );
    }
    if (colored.length) save(await zip(colored), "colored.zip");
  } catch (error) {
    if (!zipping.signal.aborted) tell("", lineOf(error));
  }
  zipping = null;
  page.zip.textContent = "Download all";
  refresh();
}

/** A name that is a file's on every system: no folder, no control character, no change of direction. */
function safeName(name) {
  const plain = name.replace(/[\\/:*?"<>|\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu, "_").replace(/^[.\s]+|[.\s]+$/g, "");
  const kept = [...plain].slice(-100).join("") || "photo";
  return /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i.test(kept) ? `_${kept}` : kept;
}

const stem = (name) => name.replace(/(?<=.)\.[^.]*$/, "");

/** A zip of files that are compressed already: stored as they are (APPNOTE.TXT 6.3.10, sections 4.3 and 4.4). */
async function zip(files) {
  const parts = [];
  const directory = [];
  const taken = new Set();
  let offset = 0;
  for (const { name, blob } of files) {
    const path = new TextEncoder().encode(unusedName(name, taken));
    const head = header(path.length, crc32(new Uint8Array(await blob.arrayBuffer())), blob.size);
    parts.push(record("PK\x03\x04", head), path, blob);
    directory.push(record("PK\x01\x02", [[20, 2], ...head, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), path);
    offset += 30 + path.length + blob.size;
    if (offset > ZIP_BYTES) throw new Refusal("more than 4 GB; download some of the photos alone");
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = files.length;
  const end = record("PK\x05\x06", [[0, 4], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** What the two headers of a file share: versions, UTF-8, stored, time, date, checksum, sizes, lengths. */
function header(nameBytes, checksum, size) {
  const now = new Date();
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  return [[20, 2], [0x800, 2], [0, 2], [time, 2], [date, 2], [checksum, 4], [size, 4], [size, 4], [nameBytes, 2], [0, 2]];
}

/** A signature, and numbers of so many bytes each. */
function record(signature, numbers) {
  const bytes = new Uint8Array(4 + numbers.reduce((sum, [, length]) => sum + length, 0));
  const view = new DataView(bytes.buffer);
  bytes.set([...signature].map((letter) => letter.charCodeAt(0)));
  let at = 4;
  for (const [value, length] of numbers) {
    if (length === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += length;
  }
  return bytes;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function unusedName(name, taken) {
  let free = name;
  for (let number = 2; taken.has(free.toLowerCase()); number++) free = name.replace(/\.png$/, ` (${number}).png`);
  taken.add(free.toLowerCase());
  return free;
}

/* The page */

for (const button of all(".choose")) button.addEventListener("click", () => page.files.click());
page.files.addEventListener("change", () => {
  addFiles(page.files.files);
  page.files.value = "";
});
one(".clear").addEventListener("click", () => {
  zipping?.abort();
  for (const card of [...cards.values()]) removeCard(card);
  page.problems.replaceChildren();
  one(".start .choose").focus();
});
page.zip.addEventListener("click", downloadAll);
page.vividness.addEventListener("input", () => {
  for (const card of cards.values()) {
    card.slider.value = page.vividness.value;
    card.recolor();
  }
});

let depth = 0; // of elements that a drag has entered
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => hasFiles(event) && (event.preventDefault(), depth++, (page.over.hidden = false)));
addEventListener("dragleave", (event) => hasFiles(event) && --depth <= 0 && (page.over.hidden = true));
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  depth = 0;
  page.over.hidden = true;
  addFiles(event.dataTransfer.files);
});
addEventListener("paste", (event) => event.clipboardData?.files.length && addFiles(event.clipboardData.files));

async function inform() {
  info = await (await fetch("/api/info")).json();
  const limits = `up to ${info.max_pixels / 1e6} megapixels and ${info.max_bytes / 1e6} MB each`;
  one("footer .info").textContent = `hpc_recolor ${info.version}, colorizer: ${info.colorizer}; ${limits}.`;
  for (const slider of [page.vividness, one("#photo").content.querySelector(".controls .vivid input")]) {
    slider.min = Math.min(1, info.vividness);
    slider.max = Math.max(2, info.vividness);
  }
  page.vividness.value = info.vividness;
}
const informed = inform().catch(() => {}); // what is asked next says why
