// The port of a live widget: the kernel has pictures and truth, and writes answers to disk.

function livePort(model) {
  const open = new Map();
  let last = 0;
  model.on("msg:custom", (message) => {
    const waiting = open.get(message.id);
    if (!waiting) return;
    open.delete(message.id);
    if (message.error) waiting.fail(new Error(message.error)); else waiting.done(message.value);
  });
  const ask = (content) => new Promise((done, fail) => {
    const id = ++last;
    open.set(id, { done, fail });
    setTimeout(() => { if (open.delete(id)) fail(new Error("the kernel did not answer within a minute")); }, 60000);
    model.send({ ...content, id });
  });
  return {
    asks: false,
    open: () => model.get("answered"),
    pictures: (trial) => ask({ what: "pictures", trial }),
    answer: (trial, given) => ask({ what: "answer", trial, ...given }),
    finish: () => ask({ what: "finish" }),
  };
}

export default {
  render({ model, el }) {
    const host = document.createElement("div");
    el.appendChild(host);
    judge(host, model.get("session"), livePort(model));
  },
};
