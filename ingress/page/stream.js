// One stream of audio over the server's own WebSocket protocol (docs/protocol.md).

const BLOCK_MS = 80;
const MAX_AHEAD_S = 20; // of audio sent and not decoded, for recordings that go faster than real time
const MAX_SENT = 4096; // departures remembered, for the latency of results
const CLOSE_AFTER_MS = 60_000;

export class Stream extends EventTarget {
  #socket;
  #sentSamples = 0;
  #ackedSamples = 0;
  #departures = []; // [samples sent so far, when], in order
  #room = [];
  #finished = false;
  #ended = false;

  // address: ws:// or wss://. rate: of the samples, Hz. options: of the message `config`. key: empty for none.
  constructor(address, rate, options, key) {
    super();
    this.rate = rate;
    this.#socket = key
      ? new WebSocket(address, ["parakeet.v1", `parakeet.auth.${key}`])
      : new WebSocket(address);
    this.#socket.binaryType = "arraybuffer";
    this.opened = new Promise((resolve, reject) => {
      this.#socket.onopen = () => {
        this.#send({ type: "config", sample_rate: rate, words: true, auto_finalize: true, ...options });
        resolve();
      };
      this.#socket.onerror = () => reject(new Error("The server does not answer, or refuses this connection."));
    });
    this.#socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    this.#socket.onclose = () => this.#end();
  }

  get secondsSent() {
    return this.#sentSamples / this.rate;
  }

  // samples: Float32Array from -1 to 1. Behind `finish` they are dropped.
  push(samples) {
    if (this.#socket.readyState !== WebSocket.OPEN || this.#finished || this.#ended) return;
    const pcm = new DataView(new ArrayBuffer(samples.length * 2));
    for (let at = 0; at < samples.length; at++) {
      const value = Math.max(-1, Math.min(1, samples[at]));
      pcm.setInt16(2 * at, value < 0 ? value * 0x8000 : value * 0x7fff, true);
    }
    this.#socket.send(pcm.buffer);
    this.#sentSamples += samples.length;
    this.#departures.push([this.#sentSamples, performance.now()]);
    if (this.#departures.length > MAX_SENT) this.#departures.shift();
  }

  // Resolves when the server has decoded enough for more to be sent; false once the stream has ended.
  async hasRoom() {
    while (!this.#ended && this.#sentSamples - this.#ackedSamples > MAX_AHEAD_S * this.rate) {
      await new Promise((resolve) => this.#room.push(resolve));
    }
    return !this.#ended;
  }

  // Sends a whole recording; realTime: as fast as it was spoken.
  async sendAll(samples, realTime, onBlock) {
    const size = Math.round((this.rate * BLOCK_MS) / 1000);
    const began = performance.now();
    for (let at = 0; at < samples.length; at += size) {
      if (!(await this.hasRoom())) return;
      const block = samples.subarray(at, at + size);
      this.push(block);
      onBlock(block);
      const early = realTime ? began + ((at + size) / this.rate) * 1000 - performance.now() : 0;
      if (early > 0 || at % (size * 16) === 0) await new Promise((resolve) => setTimeout(resolve, Math.max(0, early)));
    }
  }

  // No more audio comes; the final result follows, then `end`.
  finish() {
    this.#finished = true;
    if (this.#socket.readyState === WebSocket.OPEN) this.#send({ type: "close" });
    else this.#socket.close();
    setTimeout(() => this.#socket.close(), CLOSE_AFTER_MS);
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #take(message) {
    if (message.audio_ack_samples !== undefined) {
      this.#ackedSamples = message.audio_ack_samples;
      for (const resolve of this.#room.splice(0)) resolve();
    }
    const detail = message.type === "result" ? { ...message, latencyMs: this.#latency() } : message;
    this.dispatchEvent(new CustomEvent(message.type, { detail }));
  }

  // Milliseconds since the newest decoded sample was sent; undefined where that is not remembered.
  #latency() {
    const first = this.#departures.findIndex(([samples]) => samples >= this.#ackedSamples);
    if (first < 0) return undefined;
    this.#departures.splice(0, first);
    return performance.now() - this.#departures[0][1];
  }

  #end() {
    if (this.#ended) return;
    this.#ended = true;
    for (const resolve of this.#room.splice(0)) resolve();
    this.dispatchEvent(new CustomEvent("end"));
  }
}
