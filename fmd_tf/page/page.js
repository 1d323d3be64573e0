// Talks to TensorFlow Serving's REST API only: the signature "photo", boxes in pixels of the
// upright photo. ?model=NAME chooses another model. The server is always the page's own: a link
// must not be able to send photos elsewhere.
"use strict";

const query = new URLSearchParams(location.search);
const model = query.get("model") || document.body.dataset.model;
const server = location.host;
const predictUrl = `v1/models/${encodeURIComponent(model)}:predict`;

// Okabe and Ito's colours, told apart by colour-blind people; the line's dashes say the same.
const KNOWN_STYLES = {
  with_mask: { color: "#0072b2", dash: [] },
  without_mask: { color: "#d55e00", dash: [10, 4] },
  mask_weared_incorrect: { color: "#f0e442", dash: [3, 3] },
};
const OTHER_STYLES = ["#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

const byId = (id) => document.getElementById(id);
const status = byId("status");
let newest = 0;
let running = null;
let stream = null;
let opening = false;
let liveLoop = 0;
let shown = null;

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function styleOf(label, classNames) {
  if (KNOWN_STYLES[label]) return KNOWN_STYLES[label];
  const index = Math.max(0, classNames.indexOf(label));
  return { color: OTHER_STYLES[index % OTHER_STYLES.length], dash: [] };
}

function readable(label) {
  return label.replaceAll("_", " ");
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the file could not be read"));
    reader.readAsDataURL(blob);
  });
}

// A proxy before the model server, as nginx, says these in HTML.
const proxyReasons = {
  413: "because the photo is too large for it. Choose a smaller one.",
  429: "because too many requests came. Wait a little.",
  502: "because the model server behind it does not run.",
  504: "because the model server behind it took too long.",
};

async function ask(blob, signal) {
  const photo = await base64(blob);
  const body = { signature_name: "photo", inputs: { image_bytes: { b64: photo } } };
  let response;
  try {
    response = await fetch(predictUrl, { method: "POST", body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`No answer from ${server}. Is the model server running?`);
  }
  const text = await response.text();
  let answer = {};
  try {
    answer = JSON.parse(text);
  } catch {
    const reason = proxyReasons[response.status] || "and no JSON. Is it a model server?";
    throw new Error(`${server} answered ${response.status} ${reason}`);
  }
  if (!response.ok) throw new Error(explain(answer.error || `status ${response.status}`));
  return faceList(answer.outputs);
}

function explain(message) {
  if (/signature/i.test(message) && /photo/.test(message)) {
    return `The model ${model} finds no faces by itself: export it with --detector. (${message})`;
  }
  return `The server says: ${message}`;
}

function faceList(outputs) {
  return outputs.boxes.map((box, index) => ({
    number: index + 1,
    box,
    faceScore: outputs.face_scores[index],
    label: outputs.label[index],
    score: outputs.score[index],
    classNames: outputs.class_names[index],
  }));
}

async function label(blob) {
  const turn = ++newest;
  if (running) running.abort();
  running = new AbortController();
  say("Looking for faces …");
  try {
    const bitmap = await decode(blob);
    const started = performance.now();
    const faces = await ask(blob, running.signal);
    if (turn !== newest) return;
    const milliseconds = Math.round(performance.now() - started);
    shown = { bitmap, faces };
    draw();
    list(faces, milliseconds);
  } catch (error) {
    if (turn !== newest || error.name === "AbortError") return;
    clear();
    say(error.message, true);
  }
}

async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new Error("This file is not a photo: expected JPEG, PNG, WebP or BMP.");
  }
}

function clear() {
  shown = null;
  byId("picture").hidden = true;
  byId("result").hidden = true;
}

function draw() {
  const { bitmap, faces } = shown;
  const canvas = byId("picture");
  canvas.hidden = false;
  const width = shownWidth(canvas, bitmap);
  // At least as many pixels as the screen shows: labels on small photos stay sharp.
  const wanted = width * (window.devicePixelRatio || 1);
  const scale = Math.min(Math.max(1, wanted / bitmap.width), 4);
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const unit = canvas.width / width;
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
  // Where names would cover each other the numbers must do; the table has both.
  let tags = faces.map((face) => placeTag(pen, face, scale, unit, true));
  if (overlap(tags)) tags = faces.map((face) => placeTag(pen, face, scale, unit, false));
  for (let index = faces.length - 1; index >= 0; index--) {
    drawBox(pen, faces[index], scale, unit);
    drawTag(pen, tags[index], styleOf(faces[index].label, faces[index].classNames).color, unit);
  }
  canvas.setAttribute("aria-label", `The photo with ${faces.length} faces; the table has the same`);
}

// The style sheet leaves a tall photo narrower than the page.
function shownWidth(canvas, bitmap) {
  const most = parseFloat(getComputedStyle(canvas).maxHeight);
  return Math.min(canvas.parentElement.clientWidth, (most * bitmap.width) / bitmap.height);
}

function placeTag(pen, face, scale, unit, named) {
  const text = named ? `${face.number} ${readable(face.label)}` : `${face.number}`;
  const [left, top, , bottom] = face.box.map((value) => value * scale);
  const width = pen.measureText(text).width + 8 * unit;
  const height = 18 * unit;
  const x = Math.max(0, Math.min(left, pen.canvas.width - width));
  const y = top >= height ? top - height : Math.min(bottom, pen.canvas.height - height);
  return { text, x, y, width, height };
}

function overlap(tags) {
  return tags.some((a, index) => tags.slice(index + 1).some((b) => (
    a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height
  )));
}

function drawBox(pen, face, scale, unit) {
  const { color, dash } = styleOf(face.label, face.classNames);
  const [left, top, right, bottom] = face.box.map((value) => value * scale);
  pen.setLineDash([]);
  pen.lineWidth = 4.5 * unit;
  pen.strokeStyle = "#000";
  pen.strokeRect(left, top, right - left, bottom - top);
  pen.setLineDash(dash.map((length) => length * unit));
  pen.lineWidth = 2.5 * unit;
  pen.strokeStyle = color;
  pen.strokeRect(left, top, right - left, bottom - top);
}

function drawTag(pen, tag, color, unit) {
  pen.textBaseline = "middle";
  pen.fillStyle = "#000";
  pen.fillRect(tag.x, tag.y, tag.width, tag.height);
  pen.fillStyle = color;
  pen.fillRect(tag.x, tag.y, 3 * unit, tag.height);
  pen.fillStyle = "#fff";
  pen.fillText(tag.text, tag.x + 5.5 * unit, tag.y + tag.height / 2);
}

function list(faces, milliseconds) {
  const found = faces.length === 1 ? "1 face" : `${faces.length} faces`;
  say(`${faces.length ? found : "No face found"}, answered in ${milliseconds} ms.`);
  const counts = new Map();
  for (const face of faces) counts.set(face.label, (counts.get(face.label) || 0) + 1);
  const classNames = faces.length ? faces[0].classNames : [];
  byId("counts").replaceChildren(...classNames.map((name) => {
    const item = document.createElement("li");
    item.append(swatch(name, classNames), `${counts.get(name) || 0} ${readable(name)}`);
    return item;
  }));
  byId("faces").replaceChildren(...faces.map(row));
  byId("result").hidden = faces.length === 0;
}

function swatch(name, classNames) {
  const { color, dash } = styleOf(name, classNames);
  const box = document.createElement("span");
  box.className = "swatch";
  box.style.borderColor = color;
  box.style.borderStyle = ["solid", "dotted", "dashed"][dash.length && (dash[0] > 5 ? 2 : 1)];
  box.setAttribute("aria-hidden", "true");
  return box;
}

function row(face) {
  const cells = [
    face.number,
    readable(face.label),
    face.score.toFixed(3),
    face.faceScore.toFixed(3),
    face.box.map((value) => Math.round(value)).join(", "),
  ];
  const line = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement("td");
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}

async function toggleCamera() {
  if (stream) {
    stopCamera();
    return;
  }
  if (!navigator.mediaDevices) {
    say("The camera needs https or localhost; choose a photo instead.", true);
    return;
  }
  if (opening) return;
  opening = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    const reason = error.name === "NotAllowedError" ? "it was not allowed" : "there is none";
    say(`No camera: ${reason}. Choose a photo instead.`, true);
    return;
  } finally {
    opening = false;
  }
  byId("video").srcObject = stream;
  showCamera(true);
  say("The camera is on.");
}

function stopCamera() {
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("live").checked = false;
  showCamera(false);
  say("The camera is off.");
}

function showCamera(on) {
  for (const id of ["video", "shoot", "live-label"]) byId(id).hidden = !on;
  byId("camera").textContent = on ? "Stop the camera" : "Use the camera";
}

function frame() {
  const video = byId("video");
  if (!video.videoWidth) return Promise.resolve(null);
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

async function shoot() {
  const photo = await frame();
  if (photo) await label(photo);
  else say("The camera has no picture yet; try again.", true);
}

async function runLive() {
  const turn = ++liveLoop;  // Of two loops each would stop the other's requests.
  while (turn === liveLoop && stream && byId("live").checked) {
    await shoot();
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";  // The same file can be chosen again.
  if (file) label(file);
});
byId("camera").addEventListener("click", toggleCamera);
byId("shoot").addEventListener("click", shoot);
byId("live").addEventListener("change", runLive);
window.addEventListener("resize", () => shown && draw());
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) label(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind !== "drop") return;
    const [file] = event.dataTransfer.files;
    if (file) label(file);
    else say("That was no file; drop a photo.", true);
  });
}
