// One stream of audio to this server. The client of clients/typescript carries it, over lost connections too.

import { Stream as Client } from "./client/index.js";

const BLOCK_MS = 80;
const MAX_AHEAD_S = 20; // of audio sent and not decoded, for recordings that go faster than real time
const MAX_SENT = 4096; // departures remembered, for the latency of results
const MAX_BEHIND_S = 120; // of sound that is not decoded, behind which a live stream ends

// Events: `result`, `warning`, `error` (with a message), `connection` (lost, with the reason, or back), `end`.
export class Stream extends EventTarget {
  #client;
  #sentSamples = 0;
  #departures = []; // [samples sent so far, when], in order
  #text = "";
  #textSize = 0; // in code points
  #finished = false;
  #ended = false;
  #tooSlow = false;

  // address: ws:// or wss://. rate: of the samples, Hz. options: of the message `config`. key: empty for none.
  constructor(address, rate, options, key) {
    super();
    this.rate = rate;
    this.opened = this.#open(address, {
      ...options,
      ...(key && { key }),
      sampleRate: rate,
      text: "new", // with whole texts, what the server sends grows with the square of a recording's length
      words: true,
      auto_finalize: true,
      maxAheadS: MAX_AHEAD_S,
      onWarning: (warning) => this.#tell("warning", warning),
      onConnection: (lost) => this.#tell("connection", lost),
    });
  }

  async #open(address, options) {
    this.#client = await Client.connect(address, options);
    this.#read();
  }

  get secondsSent() {
    return this.#sentSamples / this.rate;
  }

  // samples: Float32Array from -1 to 1. Behind `finish` they are dropped. Resolves where more may be sent, with
  // false once the stream has ended.
  async push(samples) {
    if (this.#finished || this.#ended) return false;
    if (this.secondsSent - this.#client.decodedS > MAX_BEHIND_S) {
      this.#tooSlow = true;
      this.close();
      return false;
    }
    this.#sentSamples += samples.length;
    this.#departures.push([this.#sentSamples, performance.now()]);
    if (this.#departures.length > MAX_SENT) this.#departures.shift();
    try {
      await this.#client.send(samples);
      return true;
    } catch {
      return false; // the reader tells why
    }
  }

  // Sends a whole recording; realTime: as fast as it was spoken, where the tab is visible. Browsers let timers of a
  // hidden tab wait for up to a minute, so there is none but those of real time.
  async sendAll(samples, realTime, onBlock) {
    const size = Math.round((this.rate * BLOCK_MS) / 1000);
    const began = performance.now();
    for (let at = 0; at < samples.length; at += size) {
      const block = samples.subarray(at, at + size);
      const sent = this.push(block);
      onBlock(block);
      if (!(await sent)) return;
      const early = realTime ? began + ((at + size) / this.rate) * 1000 - performance.now() : 0;
      if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
    }
  }

  // No more audio comes; the final result follows, then `end`.
  finish() {
    this.#finished = true;
    this.#client.finish().catch(() => {}); // the reader tells why
  }

  // Leaves the stream; the server keeps nothing of it.
  close() {
    this.#client?.close();
  }

  async #read() {
    try {
      for await (const result of this.#client) {
        this.#tell("result", { ...result, text: this.#wholeText(result), latencyMs: this.#latency(result) });
      }
    } catch (error) {
      const said = this.#tooSlow ? "The connection, or the server, is too slow for the sound." : error.message;
      this.#tell("error", { message: error.mayRetry || this.#tooSlow ? `${said} The transcript may lack its end.` : said });
    }
    this.#ended = true;
    this.#tell("end");
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // The transcript with the new part of a result, which goes to the code point `text_from`.
  #wholeText({ text, text_from: from }) {
    if (from < this.#textSize) this.#text = [...this.#text].slice(0, from).join("");
    this.#text += text;
    this.#textSize = from + [...text].length;
    return this.#text;
  }

  // Milliseconds since the newest decoded sample was sent; undefined where that is not remembered.
  #latency({ audio_ack_samples: decoded }) {
    const first = this.#departures.findIndex(([samples]) => samples >= decoded);
    if (first < 0) return undefined;
    this.#departures.splice(0, first);
    return performance.now() - this.#departures[0][1];
  }
}
