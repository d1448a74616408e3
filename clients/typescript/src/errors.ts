/** A stream that failed. `code` is the server's, or one of this client's: `connection_lost`, `timeout`. */
export class ParakeetError extends Error {
  readonly code: string;
  /** Whether the same may succeed when it is tried again later. */
  readonly mayRetry: boolean;

  constructor(code: string, message: string, mayRetry: boolean) {
    super(message);
    this.name = "ParakeetError";
    this.code = code;
    this.mayRetry = mayRetry;
  }
}

/** Codes of the server after which trying again may help: the fault is the service's. */
const SERVICE_CODES: ReadonlySet<string> = new Set([
  "no_free_stream",
  "no_worker",
  "over_limit",
  "too_many_connections",
  "redis_unavailable",
  "stream_lost",
  "draining",
  "phrases_full",
  "worker_failed",
  "internal",
]);

/** Those after which a stream that can be resumed waits for its client, and can go on. */
const PASSING_CODES: ReadonlySet<string> = new Set(["no_worker", "redis_unavailable", "draining", "internal"]);

export function serverError(code: string, message: string): ParakeetError {
  return new ParakeetError(code, message, SERVICE_CODES.has(code));
}

/** Whether a stream that can be resumed goes on after the server's error. */
export function isPassing(code: string): boolean {
  return PASSING_CODES.has(code);
}
