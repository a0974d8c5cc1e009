// Search without a server. Browsers start no worker from a file, so here a hidden frame stands in for it: it has what the
// search script asks of a worker, `importScripts`, `postMessage` and messages.
if (location.protocol === "file:") {
  const prepare = `
    let queue = Promise.resolve();
    self.importScripts = (...urls) => {
      for (const url of urls) {
        queue = queue.then(() => new Promise((loaded, failed) => {
          const script = document.createElement("script");
          script.src = url;
          script.onload = loaded;
          script.onerror = () => failed(new Error("cannot load " + url));
          document.head.append(script);
        }));
      }
      return queue;
    };
    self.postMessage = (data) => parent.dispatchEvent(new CustomEvent(name, { detail: data }));
  `;
  let count = 0;

  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const channel = `worker-${count++}`;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.frame = frame;
      this.waiting = [];
      window.addEventListener(channel, (event) => {
        const message = new MessageEvent("message", { data: event.detail });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      });
      const script = frame.contentDocument.createElement("script");
      script.src = url;
      script.onload = () => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      };
      frame.contentWindow.name = channel;
      const first = frame.contentDocument.createElement("script");
      first.textContent = prepare;
      frame.contentDocument.head.append(first, script);
    }

    postMessage(data) {
      if (this.ready) this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
