const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2_000;

/**
 * How long, and at which times, a stream tries to go on after a lost connection: until it was without one for so long
 * since it last came anywhere, with pauses that grow, and that differ from client to client, since all of a server's
 * lose it at once.
 */
export class Patience {
  #hasProgressed = true;
  #since = 0;
  #resumedAt = 0;
  #attempts = 0;

  constructor(private readonly limitMs: number) {}

  /** Note that a result or an acknowledgement has come. */
  progressed(): void {
    this.#hasProgressed = true;
  }

  /** Note a lost connection. A stream that came nowhere on that connection has only what is left of the time. */
  lost(): void {
    const now = performance.now();
    if (!this.#hasProgressed && now - this.#resumedAt <= this.limitMs) {
      this.#since += now - this.#resumedAt; // a client that had nothing to send did not wait
      return;
    }
    this.#hasProgressed = false;
    this.#since = now;
    this.#attempts = 0;
  }

  /** Note that the stream goes on. */
  resumed(): void {
    this.#resumedAt = performance.now();
  }

  /** Wait for the next attempt; false where the time is over. */
  async pause(): Promise<boolean> {
    const leftMs = this.#since + this.limitMs - performance.now();
    if (leftMs <= 0) return false;
    const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.#attempts) * (0.5 + Math.random());
    this.#attempts += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(pauseMs, leftMs)));
    return true;
  }
}
