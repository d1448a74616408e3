// One stream of audio over the server's own WebSocket protocol (docs/protocol.md).

const BLOCK_MS = 80;
const MAX_AHEAD_S = 20; // of audio sent and not decoded, for recordings that go faster than real time
const MAX_SENT = 4096; // departures remembered, for the latency of results
const MAX_BUFFERED_S = 30; // of sound that the network has not taken, behind which the connection counts as lost
const CLOSE_AFTER_MS = 60_000; // without a message, once no more audio comes

export class Stream extends EventTarget {
  #socket;
  #sentSamples = 0;
  #ackedSamples = 0;
  #departures = []; // [samples sent so far, when], in order
  #room = [];
  #text = "";
  #textSize = 0; // in code points
  #opened = false;
  #finished = false;
  #told = false; // how it ended: by the final result, or by an error
  #ended = false;
  #closing;

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
        this.#opened = true;
        // With whole texts, what the server sends grows with the square of a recording's length.
        this.#send({ type: "config", sample_rate: rate, text: "new", words: true, auto_finalize: true, ...options });
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
    if (this.#socket.bufferedAmount > 2 * MAX_BUFFERED_S * this.rate) return this.#lose();
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

  // Sends a whole recording; realTime: as fast as it was spoken, where the tab is visible. Browsers let timers of a
  // hidden tab wait for up to a minute, so there is none but those of real time.
  async sendAll(samples, realTime, onBlock) {
    const size = Math.round((this.rate * BLOCK_MS) / 1000);
    const began = performance.now();
    for (let at = 0; at < samples.length; at += size) {
      if (!(await this.hasRoom())) return;
      const block = samples.subarray(at, at + size);
      this.push(block);
      onBlock(block);
      const early = realTime ? began + ((at + size) / this.rate) * 1000 - performance.now() : 0;
      if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
    }
  }

  // No more audio comes; the final result follows, then `end`.
  finish() {
    this.#finished = true;
    if (this.#socket.readyState === WebSocket.OPEN) this.#send({ type: "close" });
    else this.#socket.close();
    this.#expectMessage();
  }

  #expectMessage() {
    clearTimeout(this.#closing);
    if (!this.#ended) this.#closing = setTimeout(() => this.#lose(), CLOSE_AFTER_MS);
  }

  // Ends the stream at once: a socket whose server is gone closes after minutes.
  #lose() {
    this.#socket.close();
    this.#end();
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #take(message) {
    if (message.audio_ack_samples !== undefined) {
      this.#ackedSamples = message.audio_ack_samples;
      for (const resolve of this.#room.splice(0)) resolve();
    }
    if (this.#finished) this.#expectMessage();
    if (message.type === "error" || message.is_final) this.#told = true;
    const detail =
      message.type === "result" ? { ...message, text: this.#wholeText(message), latencyMs: this.#latency() } : message;
    this.dispatchEvent(new CustomEvent(message.type, { detail }));
  }

  // The transcript with the new part of a result, which goes to the code point `text_from`.
  #wholeText({ text, text_from: from }) {
    if (from < this.#textSize) this.#text = [...this.#text].slice(0, from).join("");
    this.#text += text;
    this.#textSize = from + [...text].length;
    return this.#text;
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
    clearTimeout(this.#closing);
    if (this.#opened && !this.#told) {
      const detail = { message: "The connection was lost. The transcript may lack its end." };
      this.dispatchEvent(new CustomEvent("error", { detail }));
    }
    for (const resolve of this.#room.splice(0)) resolve();
    this.dispatchEvent(new CustomEvent("end"));
  }
}
