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

/** Codes of the server after which trying again may help. */
const SERVICE_CODES: ReadonlySet<string> = new Set([
  "no_free_stream",
  "no_worker",
  "redis_unavailable",
  "stream_lost",
  "draining",
  "worker_failed",
  "internal",
]);

export function serverError(code: string, message: string): ParakeetError {
  return new ParakeetError(code, message, SERVICE_CODES.has(code));
}
