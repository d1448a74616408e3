// The page: microphone or recording in, transcript out.

import { asSrt, asText } from "./captions.js";
import { decodeRecording, microphoneAllowed, openMicrophone } from "./sources.js";
import { Stream } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Transcript, clock } from "./transcript.js";

const RECORDING_RATE = 16_000;
const MAX_LATENCIES = 200;
const MAX_EVENTS = 200;
const FLOOR_DB = -60;

const find = (id) => document.getElementById(id);
const address = Object.assign(new URL(location.href), {
  protocol: location.protocol === "https:" ? "wss:" : "ws:",
  search: "",
  hash: "",
}).href;

const transcript = new Transcript(find("transcript"));
const timeline = new Timeline(find("timeline"));
let source; // "microphone" or "file" from the click to the end of its stream: there is one at a time
let stream;
let microphone; // while it is heard
let latencies = [];
let failed = false;
let activity = ["idle", "Ready"]; // what the page says again where it goes on after a lost connection

find("address").textContent = `Clients connect to ${address}.`;
find("insecure").hidden = microphoneAllowed();
busy();

find("microphone").addEventListener("click", () => (microphone ? stopMicrophone() : startMicrophone()));
find("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) sendRecording(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  find("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length > 0) sendRecording(event.dataTransfer.files[0]);
  });
}
find("options").addEventListener("submit", (event) => event.preventDefault());
find("save-txt").addEventListener("click", () => save("transcript.txt", asText(transcript.utterances)));
find("save-srt").addEventListener("click", () => save("transcript.srt", asSrt(transcript.utterances)));
find("clear").addEventListener("click", () => {
  transcript.clear();
  find("events").replaceChildren();
  showFigures();
});

// A stream that is left without a word keeps its slot, since its client might come back.
window.addEventListener("pagehide", () => stream?.close());

// -- streams

function options() {
  const fields = new FormData(find("options"));
  const chosen = {};
  if (fields.get("language")) chosen.language = fields.get("language");
  const phrases = (fields.get("phrases") ?? "").split(",").map((text) => text.trim()).filter(Boolean);
  if (phrases.length) chosen.phrases = phrases;
  if (fields.get("turn_silence_ms")) chosen.turn_silence_ms = Number(fields.get("turn_silence_ms"));
  return chosen;
}

async function begin(rate) {
  failed = false;
  latencies = [];
  timeline.clear();
  transcript.begin();
  const made = (stream = new Stream(address, rate, options(), find("key").value.trim()));
  stream.addEventListener("result", (event) => onResult(event.detail));
  stream.addEventListener("warning", (event) => say("error", event.detail.message));
  stream.addEventListener("error", (event) => fail(event.detail.message));
  stream.addEventListener("connection", (event) => made === stream && onConnection(event.detail));
  made.addEventListener("end", () => made === stream && onEnd());
  await made.opened;
  return made;
}

async function startMicrophone() {
  if (source) return;
  source = "microphone";
  busy();
  say("busy", "Asking for the microphone");
  let opened;
  let gone = false;
  try {
    let target;
    const onBlock = (block) => {
      target?.push(block);
      if (target) showSound(block);
    };
    opened = await openMicrophone(onBlock, () => {
      gone = true;
      if (microphone) loseMicrophone();
    });
    target = await begin(opened.rate);
    microphone = opened;
    pressed(true);
    act("live", "Listening");
    if (gone) loseMicrophone();
  } catch (error) {
    await opened?.stop();
    fail(error.name === "NotAllowedError" ? "The microphone was not allowed." : error.message);
    onEnd();
  }
}

async function stopMicrophone() {
  const [opened, heard] = [microphone, stream];
  microphone = undefined;
  pressed(false);
  await opened.stop();
  if (!failed) act("busy", "Finishing");
  heard?.finish();
}

// The transcript of what was heard comes all the same.
function loseMicrophone() {
  fail("The microphone is gone: it was unplugged, or is no longer allowed.");
  stopMicrophone();
}

async function sendRecording(file) {
  if (source) return;
  source = "file";
  busy();
  say("busy", `Reading ${file.name}`);
  try {
    const samples = await decodeRecording(file, RECORDING_RATE);
    const target = await begin(RECORDING_RATE);
    act("busy", `Transcribing ${file.name}`);
    await target.sendAll(samples, find("options").elements.real_time.checked, showSound);
    target.finish();
  } catch (error) {
    fail(error.message);
    onEnd();
  }
}

function onResult(result) {
  transcript.show(result);
  if (result.latencyMs !== undefined && !result.is_final) {
    latencies.push(result.latencyMs);
    if (latencies.length > MAX_LATENCIES) latencies.shift();
  }
  const seconds = result.audio_ack_samples / stream.rate;
  timeline.addTurn(seconds, result.turn_detection);
  find("turn").textContent = result.turn_detection.replaceAll("_", " ");
  if (result.turn_detection.endsWith("_utterance")) note(seconds, result.turn_detection.replaceAll("_", " "));
  showFigures();
}

// lost: the reason, or undefined where the stream goes on.
function onConnection(lost) {
  if (failed) return;
  const reason = lost && lost.code !== "connection_lost" ? `: ${lost.message}` : "";
  note(stream.secondsSent, lost ? `connection lost${reason}` : "connected again");
  if (lost) say("error", "The connection was lost. What is said is kept; trying again");
  else say(...activity);
}

function onEnd() {
  if (microphone) {
    microphone.stop();
    microphone = undefined;
    pressed(false);
  }
  source = stream = undefined;
  busy();
  showLevel(FLOOR_DB);
  find("turn").textContent = "–";
  if (!failed) say("idle", "Done");
}

// -- what the page shows

function say(state, text) {
  find("status").dataset.state = state;
  find("status").textContent = text;
}

function act(...said) {
  activity = said;
  say(...said);
}

function fail(text) {
  failed = true;
  say("error", text.charAt(0).toUpperCase() + text.slice(1));
}

function busy() {
  find("file").disabled = source !== undefined;
  // Not while the microphone opens: a disabled button would lose the keyboard's focus.
  find("microphone").disabled = source === "file" || !microphoneAllowed();
}

function pressed(on) {
  find("microphone").setAttribute("aria-pressed", String(on));
  find("microphone").querySelector(".label").textContent = on ? "Stop" : "Start microphone";
}

function showSound(block) {
  let peak = 0;
  for (const sample of block) peak = Math.max(peak, Math.abs(sample));
  timeline.addSound(stream?.secondsSent ?? 0, peak);
  showLevel(20 * Math.log10(Math.max(peak, 1e-6)));
  find("seconds").textContent = clock(stream?.secondsSent ?? 0);
}

function showLevel(decibels) {
  const level = Math.max(FLOOR_DB, Math.min(0, decibels));
  const meter = find("level");
  meter.setAttribute("aria-valuenow", level.toFixed(0));
  meter.classList.toggle("loud", level > -1);
  meter.firstElementChild.style.width = `${100 * (1 - level / FLOOR_DB)}%`;
}

function showFigures() {
  const words = transcript.words;
  find("count").textContent = String(words);
  for (const id of ["save-txt", "save-srt", "clear"]) find(id).disabled = words === 0;
  const sorted = latencies.toSorted((one, other) => one - other);
  const at = (share) => `${Math.round(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))])}`;
  find("latency").textContent = sorted.length > 0 ? `${at(0.5)} / ${at(0.95)} ms` : "–";
}

function note(seconds, text) {
  const item = document.createElement("li");
  item.textContent = `${seconds.toFixed(2)} s: ${text}`;
  find("events").append(item);
  if (find("events").childElementCount > MAX_EVENTS) find("events").firstElementChild.remove();
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
