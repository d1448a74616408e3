// The last half minute of sound: its level, where speech was heard, and where utterances began and ended.

const SPAN_S = 30;
const MAX_LEVELS = 2000;
const MAX_TURNS = 500;
const AXIS_PX = 14; // below the sound, which covers no label

export class Timeline {
  #canvas;
  #levels = []; // [seconds, peak 0..1]
  #turns = []; // [seconds, state]
  #seconds = 0;
  #drawn = false;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  clear() {
    this.#levels = [];
    this.#turns = [];
    this.#seconds = 0;
    this.#draw();
  }

  addSound(seconds, peak) {
    this.#seconds = seconds;
    this.#levels.push([seconds, peak]);
    if (this.#levels.length > MAX_LEVELS) this.#levels.shift();
    this.#draw();
  }

  // state: `turn_detection` of a result, at `seconds` of audio.
  addTurn(seconds, state) {
    this.#turns.push([seconds, state]);
    if (this.#turns.length > MAX_TURNS) this.#turns.shift();
    this.#draw();
  }

  #draw() {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => {
      this.#drawn = false;
      this.#paint();
    });
  }

  #paint() {
    const canvas = this.#canvas;
    const scale = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight - AXIS_PX;
    canvas.width = width * scale;
    canvas.height = canvas.clientHeight * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const from = Math.max(0, this.#seconds - SPAN_S);
    const x = (seconds) => ((seconds - from) / SPAN_S) * width;

    pen.fillStyle = colour("--speech");
    let since;
    for (const [seconds, state] of [...this.#turns, [this.#seconds, "pause"]]) {
      const speaks = state === "running" || state === "start_of_utterance";
      if (speaks) since ??= seconds;
      else if (since !== undefined) {
        pen.fillRect(x(since), 0, Math.max(2, x(seconds) - x(since)), height);
        since = undefined;
      }
    }
    pen.strokeStyle = colour("--line");
    pen.beginPath();
    pen.moveTo(0, height / 2);
    pen.lineTo(width, height / 2);
    pen.stroke();
    pen.fillStyle = colour("--soft");
    for (const [seconds, peak] of this.#levels) {
      const tall = Math.max(1, peak * height * 0.9);
      pen.fillRect(x(seconds), (height - tall) / 2, 2, tall);
    }
    for (const [seconds, state] of this.#turns) {
      if (state !== "start_of_utterance" && state !== "end_of_utterance") continue;
      pen.fillStyle = colour(state === "start_of_utterance" ? "--mark" : "--end");
      pen.fillRect(x(seconds) - 1, 0, 2, height);
    }
    pen.fillStyle = colour("--soft");
    pen.font = "11px system-ui, sans-serif";
    for (let second = Math.ceil(from / 5) * 5; second <= from + SPAN_S; second += 5) {
      pen.fillText(`${second} s`, x(second) + 2, height + AXIS_PX - 3);
    }
  }
}
