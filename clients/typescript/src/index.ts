export { ParakeetError } from "./errors.js";
export type { ConfigOptions, Encoding, LastState, Phrase, Result, TurnDetection, Utterance, Warning, Word } from "./messages.js";
export type { Samples } from "./samples.js";
export { Stream, type StreamOptions } from "./stream.js";
