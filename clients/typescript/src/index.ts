export { ParakeetError } from "./errors.js";
export type { ConfigOptions, LastState, Result, TurnDetection, Utterance, Warning, Word } from "./messages.js";
export { Stream, type StreamOptions } from "./stream.js";
