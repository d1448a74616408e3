/** Audio that was sent and that the server may ask for again after a lost connection. */
export class AudioBuffer {
  #blocks: { first: number; samples: Int16Array }[] = [];
  #end = 0;
  #held = 0;

  /** Samples that were added so far: the position behind the last one. */
  get end(): number {
    return this.#end;
  }

  /** Samples that are held. */
  get held(): number {
    return this.#held;
  }

  add(samples: Int16Array): void {
    this.#blocks.push({ first: this.#end, samples });
    this.#end += samples.length;
    this.#held += samples.length;
  }

  /** Let go of everything before this position. */
  release(position: number): void {
    let block = this.#blocks[0];
    while (block !== undefined && block.first + block.samples.length <= position) {
      this.#blocks.shift();
      this.#held -= block.samples.length;
      block = this.#blocks[0];
    }
  }

  /** Yields all audio from this position on; throws where some of it is held no more. */
  *from(position: number): Generator<Int16Array> {
    const first = this.#blocks[0]?.first ?? this.#end;
    if (position < first) throw new RangeError(`audio before sample ${first} is held no more`);
    for (const { first, samples } of this.#blocks) {
      const skip = Math.max(0, position - first);
      if (skip < samples.length) yield samples.subarray(skip);
    }
  }
}

/** Floats from -1 to 1 as 16-bit samples; louder ones are clipped. */
export function toInt16(samples: Float32Array): Int16Array {
  const converted = new Int16Array(samples.length);
  for (let at = 0; at < samples.length; at++) {
    const value = Math.max(-1, Math.min(1, samples[at] ?? 0));
    converted[at] = Math.round(value < 0 ? value * 0x8000 : value * 0x7fff);
  }
  return converted;
}
