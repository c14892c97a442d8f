// How the page talks to the server. Addresses are relative to the page, so that it works behind a prefix, too.

const KEY = "lifelist-key"; // in sessionStorage: gone when the tab is closed, and never sent anywhere else

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

const headers = () => (key.get() ? { "X-API-Key": key.get() } : {});

async function answer(path, options = {}) {
  const found = await fetch(path, { ...options, headers: { ...headers(), ...options.headers }, credentials: "omit" });
  if (found.ok) return found;
  const said = await found.json().catch(() => ({}));
  throw new Refusal(found.status, said.error ?? `${found.status} ${found.statusText}`);
}

function address(path, asked = {}) {
  const given = Object.entries(asked).filter(([, value]) => value !== undefined && value !== null);
  const query = new URLSearchParams(given).toString();
  return query ? `${path}?${query}` : path;
}

export const get = async (path, asked) => (await answer(address(path, asked))).json();
export const text = async (path) => (await answer(path)).text();
export const picture = async (path, asked) => (await answer(address(path, asked))).blob();

export async function post(path, body, options = {}) {
  const sent = body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await answer(path, { method: "POST", ...sent, ...options })).json();
}

// Server-sent events, read by fetch since EventSource sends no key: `tell({id, event, data})` for each, to the end.
export async function events(path, tell, { after = 0, signal } = {}) {
  const sent = after ? { "Last-Event-ID": String(after) } : {};
  const found = await answer(path, { headers: sent, signal });
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => line.match(/^(\w+): (.*)$/)?.slice(1)).filter(Boolean);
      const said = Object.fromEntries(lines);
      if (said.data) tell({ id: Number(said.id), event: said.event, data: JSON.parse(said.data) });
    }
  }
}
