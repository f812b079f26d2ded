"use strict";
const $ = (id) => document.getElementById(id);
const state = { file: null, name: "", job: null, serial: 0, models: [], urls: {}, stop: null };

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { authorization: `Bearer ${token}` } : {};
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (answer.status === 401) $("secret").hidden = false;
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${answer.status}`);
  }
  return answer;
}

// An object URL in place of the last one for the same purpose.
function url(purpose, blob) {
  if (state.urls[purpose]) URL.revokeObjectURL(state.urls[purpose]);
  return (state.urls[purpose] = URL.createObjectURL(blob));
}

function say(text) { $("message").textContent = text; }

function options() {
  const model = state.models.find((one) => one.name === $("model").value);
  const weight = Number($("weight").value);
  $("weight-value").value = weight.toFixed(2);
  $("weight-name").textContent = model?.has_fidelity ? "Fidelity" : "Strength";
  return { model, weight };
}

function writeYaml() {
  const { model, weight } = options();
  const kind = model?.has_fidelity ? "fidelity" : "strength";
  $("yaml-text").textContent = [
    "gfpgan:", "  enabled: true", `  model: ${model?.name ?? "auto"}`, `  ${kind}: ${weight}`,
    `  region: ${$("region").value}`, "",
  ].join("\n");
  $("command").textContent = "musetalk-enhance run scripts/inference.py " +
    "--inference_config configs/musetalk.yaml";
}

function split() {
  const share = Number($("slider").value);
  $("before").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
}

function draw(answer) {
  const overlay = $("overlay");
  overlay.replaceChildren();
  $("faces").replaceChildren();
  const scale = $("before").naturalWidth || 1;
  overlay.setAttribute("viewBox", `0 0 ${scale} ${$("before").naturalHeight || 1}`);
  for (const face of answer.faces) {
    const [left, top, right, bottom] = face.box_xyxy;
    if ($("boxes").checked) {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of Object.entries(
        { x: left, y: top, width: right - left, height: bottom - top })) {
        rect.setAttribute(name, value);
      }
      overlay.append(rect);
    }
    const item = document.createElement("li");
    item.textContent = `${face.state}, score ${face.score.toFixed(2)}, ` +
      `${Math.round(right - left)}×${Math.round(bottom - top)} px`;
    $("faces").append(item);
  }
}

function show(kind) {
  for (const id of ["compare", "slider-label"]) $(id).hidden = kind !== "image";
  $("video").hidden = kind !== "video";
  $("download").hidden = true;
  $("page").hidden = true;
  $("progress").hidden = true;
  $("cancel").hidden = true;
  $("faces").replaceChildren();
}

function offer(blob, name) {
  const link = $("download");
  link.href = url("download", blob);
  link.download = name;
  link.hidden = false;
}

async function restoreImage(serial) {
  const { model, weight } = options();
  const form = new FormData();
  form.set("image", state.file, state.name);
  form.set("face_restoration_weight", weight);
  form.set("upscale_factor", $("upscale").value);
  form.set("has_aligned", $("aligned").checked);
  form.set("only_center_face", $("center").checked);
  form.set("response", "image");
  if (model) form.set("model", model.name);
  const stop = (state.stop = new AbortController());
  const answer = await call("/restore", { method: "POST", body: form, signal: stop.signal });
  const details = JSON.parse(answer.headers.get("x-face-restoration"));
  const blob = await answer.blob();
  if (serial !== state.serial) return;
  show("image");
  $("after").src = url("after", blob);
  $("before").src = url("before", state.file);
  await Promise.all([$("after").decode(), $("before").decode()]);
  split();
  draw(details);
  state.details = details;
  const count = details.faces.filter((face) => face.state === "restored").length;
  say(`${count} of ${details.faces.length} faces restored by ${details.model} ` +
    `in ${Math.round(details.timings_ms.total)} ms.`);
  offer(blob, `restored.${details.media_type.split("/")[1]}`);
}

async function restoreVideo(serial) {
  const { model, weight } = options();
  const form = new FormData();
  form.set("video", state.file, state.name);
  form.set("face_restoration_weight", weight);
  form.set("region", $("region").value);
  form.set("only_center_face", $("center").checked);
  form.set("report", $("report").checked);
  if (model) form.set("model", model.name);
  show("none");
  $("progress").hidden = false;
  $("progress").removeAttribute("value");
  say("Uploading…");
  let job = await (await call("/restore/video", { method: "POST", body: form })).json();
  state.job = job.id;
  $("cancel").hidden = false;
  const path = `/restore/video/${job.id}`;
  while (["queued", "running"].includes(job.state) && serial === state.serial) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    job = await (await call(path)).json();
    if (job.frames_total) {
      $("progress").max = job.frames_total;
      $("progress").value = job.frames_processed;
    }
    say(job.state === "queued" ? "Waiting for other videos…"
      : `${job.frames_processed} of ${job.frames_total ?? "?"} frames`);
  }
  if (serial !== state.serial) return;
  show(job.state === "finished" ? "video" : "none");
  if (job.state !== "finished") throw new Error(job.error ?? `the job was ${job.state}`);
  const blob = await (await call(`${path}/result`)).blob();
  $("video").src = url("video", blob);
  offer(blob, "restored.mp4");
  say(`${job.result.faces_restored} faces in ${job.result.restored} of ` +
    `${job.result.frames} frames restored by ${job.result.model}.`);
  if ($("report").checked) {
    const page = await (await call(`${path}/report`)).blob();
    $("page").src = url("page", page);
    $("page").hidden = false;
  }
}

async function restore() {
  writeYaml();
  if (!state.file) return;
  const serial = ++state.serial;
  state.stop?.abort();
  say("Restoring…");
  try {
    const isVideo = state.file.type.startsWith("video/");
    await (isVideo ? restoreVideo(serial) : restoreImage(serial));
  } catch (error) {
    if (serial === state.serial && error.name !== "AbortError") say(`Failed: ${error.message}`);
  }
}

let timer = 0;
function restoreSoon() {
  writeYaml();
  clearTimeout(timer);
  // a video is uploaded again only when it is chosen again
  if (state.file && !state.file.type.startsWith("video/")) timer = setTimeout(restore, 250);
}

function take(file) {
  if (!file) return;
  state.file = file;
  state.name = file.name;
  restore();
}

function selectTab(tab) {
  for (const one of document.querySelectorAll("[role=tab]")) {
    const selected = one === tab;
    one.setAttribute("aria-selected", selected);
    one.tabIndex = selected ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !selected;
  }
  tab.focus();
}

async function begin() {
  try {
    state.models = await (await call("/models")).json();
  } catch (error) {
    $("state").textContent = error.message;
    return;
  }
  $("secret").hidden = !sessionStorage.getItem("token");
  $("model").replaceChildren(...state.models
    .filter((one) => ["loaded", "ready"].includes(one.status))
    .map((one) => new Option(one.name, one.name, one.default, one.default)));
  $("state").textContent = "Ready.";
  writeYaml();
  const example = await fetch("/example.jpg");
  if (example.ok && !state.file) {
    take(new File([await example.blob()], "example.jpg", { type: "image/jpeg" }));
  }
}

$("form").addEventListener("submit", (event) => event.preventDefault());
$("file").addEventListener("change", () => take($("file").files[0]));
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", $("token").value);
  begin();
});
for (const id of ["model", "upscale", "aligned", "center", "region"]) {
  $(id).addEventListener("change", restoreSoon);
}
$("weight").addEventListener("input", restoreSoon);
$("slider").addEventListener("input", split);
$("boxes").addEventListener("change", () => state.details && draw(state.details));
$("cancel").addEventListener("click", () => call(`/restore/video/${state.job}`, { method: "DELETE" }));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
$("drop").addEventListener("keydown", (event) => {
  if (event.target === $("drop") && ["Enter", " "].includes(event.key)) $("file").click();
});
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    selectTab($(tab.id === "tab-view" ? "tab-yaml" : "tab-view"));
  });
}
begin();
