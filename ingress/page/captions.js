// Text and subtitles from words with times.

const MAX_LINE = 42;
const MAX_LINES = 2;
const MAX_CUE_S = 7;

// utterances: lists of { word, start_s, end_s }.
export function asText(utterances) {
  return utterances.map((words) => words.map(({ word }) => word).join(" ")).join("\n") + "\n";
}

export function asSrt(utterances) {
  return utterances
    .flatMap(cues)
    .map(({ start, end, lines }, at) => `${at + 1}\n${stamp(start)} --> ${stamp(end)}\n${lines.join("\n")}\n`)
    .join("\n");
}

// Cues of one utterance: at most two lines of 42 characters, and seven seconds.
function cues(words) {
  const found = [];
  let cue;
  for (const { word, start_s: start, end_s: end } of words) {
    const line = cue?.lines.at(-1);
    const sameLine = line !== undefined && line.length + 1 + word.length <= MAX_LINE;
    if (cue === undefined || end - cue.start > MAX_CUE_S || (!sameLine && cue.lines.length === MAX_LINES)) {
      cue = { start, end, lines: [word] };
      found.push(cue);
    } else if (sameLine) {
      cue.lines[cue.lines.length - 1] += ` ${word}`;
    } else {
      cue.lines.push(word);
    }
    cue.end = Math.max(end, cue.start + 0.001);
  }
  return found;
}

function stamp(seconds) {
  const ms = Math.round(seconds * 1000);
  const part = (value, width) => String(Math.floor(value)).padStart(width, "0");
  return `${part(ms / 3_600_000, 2)}:${part((ms / 60_000) % 60, 2)}:${part((ms / 1000) % 60, 2)},${part(ms % 1000, 3)}`;
}
