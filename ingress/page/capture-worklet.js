// Hands the microphone's samples to the page, in blocks of 80 ms.

class Capture extends AudioWorkletProcessor {
  #block = new Float32Array(Math.round(sampleRate * 0.08));
  #filled = 0;

  process(inputs) {
    const channels = inputs[0];
    if (channels.length === 0) return true;
    for (let at = 0; at < channels[0].length; at++) {
      let sum = 0;
      for (const channel of channels) sum += channel[at];
      this.#block[this.#filled++] = sum / channels.length;
      if (this.#filled === this.#block.length) {
        this.port.postMessage(this.#block);
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
