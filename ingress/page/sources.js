// Where audio comes from: the microphone, or a recording that the browser can decode.

const MAX_RATE = 48_000; // what the server takes
const MAX_RECORDING_S = 4 * 3600;

export function microphoneAllowed() {
  return window.isSecureContext && navigator.mediaDevices !== undefined;
}

// Opens the microphone; onBlock gets Float32Arrays. onGone: called where it is unplugged, or no longer allowed.
// Returns { rate, stop }.
export async function openMicrophone(onBlock, onGone) {
  // A browser's noise suppression takes parts of speech away; recognisers are trained on noise.
  const media = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: true },
  });
  for (const track of media.getAudioTracks()) track.addEventListener("ended", onGone);
  const release = () => media.getTracks().forEach((track) => track.stop());
  try {
    const { context, node } = await capture(media, onBlock);
    return {
      rate: context.sampleRate,
      async stop() {
        node.port.onmessage = null; // blocks may still be on their way
        release();
        await context.close();
      },
    };
  } catch (error) {
    release();
    throw error;
  }
}

async function capture(media, onBlock) {
  let context = new AudioContext();
  if (context.sampleRate > MAX_RATE) {
    await context.close();
    context = new AudioContext({ sampleRate: MAX_RATE });
  }
  await context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
  const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  node.port.onmessage = (event) => onBlock(event.data);
  context.createMediaStreamSource(media).connect(node);
  await context.resume();
  return { context, node };
}

// Decodes a file to one channel at `rate`. Channels of opposite phase would cancel out when added, so then
// the louder one is taken.
export async function decodeRecording(file, rate) {
  const context = new OfflineAudioContext(1, 1, rate);
  let decoded;
  try {
    decoded = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`This browser cannot decode ${file.name}.`);
  }
  if (decoded.duration > MAX_RECORDING_S) throw new Error("The recording is longer than four hours.");
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, at) => decoded.getChannelData(at));
  if (channels.length === 1) return channels[0];
  const mixed = new Float32Array(decoded.length);
  for (const channel of channels) for (let at = 0; at < mixed.length; at++) mixed[at] += channel[at] / channels.length;
  const loudest = channels.reduce((best, channel) => (energy(channel) > energy(best) ? channel : best));
  return energy(mixed) < 0.01 * energy(loudest) ? loudest : mixed;
}

function energy(samples) {
  let sum = 0;
  for (let at = 0; at < samples.length; at += 8) sum += samples[at] * samples[at];
  return sum;
}
