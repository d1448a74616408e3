/** What travels between client and server; docs/protocol.md says what each field means. */

export type LastState = "speech" | "silence" | null;
export type TurnDetection = "start_of_utterance" | "running" | "pause" | "end_of_utterance";

/** A word with its place in the stream's audio. */
export interface Word {
  word: string;
  start_s: number;
  end_s: number;
  confidence: number;
}

/** The final of one utterance; only with the option `auto_finalize`. */
export interface Utterance {
  number: number;
  text: string;
  start_s: number;
  end_s: number;
}

export interface Result {
  type: "result";
  /** The whole transcript so far; with the option `text: "new"` the new part, which goes to `text_from`. */
  text: string;
  text_from?: number;
  token_ids: number[];
  confidence_scores: number[];
  /** True in the last result of the stream. */
  is_final: boolean;
  last_state: LastState;
  turn_detection: TurnDetection;
  seq: number;
  seq_first?: number;
  /** Samples that are decoded by now. */
  audio_ack_samples: number;
  words?: Word[];
  utterances?: Utterance[];
  from_finalize?: boolean;
}

export interface Warning {
  type: "warning";
  code: string;
  message: string;
}

export interface Hello {
  type: "hello";
  stream_id: number;
  sample_rate: number;
  resume_token: string;
  capabilities: string[];
}

export interface Resumed {
  type: "resumed";
  stream_id: number;
  resume_token: string;
  next_sample: number;
}

export interface ErrorMessage {
  type: "error";
  code: string;
  message: string;
  stream_id?: number;
}

export type ServerMessage =
  | Hello
  | Resumed
  | Result
  | Warning
  | ErrorMessage
  | { type: "ack"; audio_ack_samples: number }
  | { type: "pong" };

/** A name or term that the speaker is likely to say, with how much it is preferred (0 to 10). */
export type Phrase = string | { text: string; boost?: number; optional?: boolean };

/** How samples are written: 16-bit, 32-bit floats from -1 to 1, or G.711. */
export type Encoding = "pcm16" | "f32" | "mulaw" | "alaw";

/** Options of a stream, as the message `config` takes them. */
export interface ConfigOptions {
  phrases?: Phrase[];
  recording?: boolean;
  words?: boolean;
  auto_finalize?: boolean;
  language?: string;
  text?: "whole" | "new";
  turn_detection?: boolean;
  turn_signals?: string;
  vad_threshold?: number;
  turn_min_speech_ms?: number;
  turn_pause_ms?: number;
  turn_silence_ms?: number;
  turn_max_pause_ms?: number;
}
