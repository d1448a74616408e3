import type { Phrase } from "./messages.js";

/** A message with a place in the audio: behind all that came before it. */
export type Mark = { type: "finalize" } | { type: "phrases"; phrases: Phrase[] };

/** Marks that are to be sent, and marks that were sent and may have been lost with the connection. */
export class Marks {
  #marks: { place: number; mark: Mark }[] = [];
  #numSent = 0; // of those, from the first on

  /** Note a message behind this many samples. */
  add(place: number, mark: Mark): void {
    this.#marks.push({ place, mark });
  }

  /** The next mark to be sent. */
  get next(): { place: number; mark: Mark } | undefined {
    return this.#marks[this.#numSent];
  }

  /** Note that the next mark was sent. */
  sent(): void {
    this.#numSent += 1;
  }

  /** Note the answer to a `finalize`: the first that has none. */
  answered(): void {
    const at = this.#marks.findIndex(({ mark }) => mark.type === "finalize");
    if (at < 0 || at >= this.#numSent) return;
    this.#marks.splice(at, 1);
    this.#numSent -= 1;
  }

  /** Note what the server has decoded: `phrases` before it have arrived. */
  decoded(samples: number): void {
    const arrived = ({ place, mark }: { place: number; mark: Mark }, at: number): boolean =>
      at < this.#numSent && mark.type === "phrases" && place < samples;
    const kept = this.#marks.filter((one, at) => !arrived(one, at));
    this.#numSent -= this.#marks.length - kept.length;
    this.#marks = kept;
  }

  /** Send all again: the connection was lost. */
  repeat(): void {
    this.#numSent = 0;
  }
}
