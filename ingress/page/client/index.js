export { ParakeetError } from "./errors.js";
export { Stream } from "./stream.js";
