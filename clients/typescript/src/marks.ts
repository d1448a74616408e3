import type { Phrase } from "./messages.js";

/** A message with a place in the audio: behind all that came before it. */
export type Mark = { type: "finalize" } | { type: "phrases"; phrases: Phrase[] };

/** Marks that were sent and may have been lost with the connection. */
export class Marks {
  #sent: { place: number; mark: Mark }[] = [];

  /** Note a message behind this many samples. */
  add(place: number, mark: Mark): void {
    this.#sent.push({ place, mark });
  }

  /** Note the answer to a `finalize`: the first that has none. */
  answered(): void {
    const at = this.#sent.findIndex(({ mark }) => mark.type === "finalize");
    if (at >= 0) this.#sent.splice(at, 1);
  }

  /** Note what the server has decoded: `phrases` before it have arrived. */
  decoded(samples: number): void {
    this.#sent = this.#sent.filter(({ place, mark }) => mark.type === "finalize" || place >= samples);
  }

  /** What is to be sent again, with places, in order. */
  unsure(): readonly { place: number; mark: Mark }[] {
    return this.#sent;
  }
}
