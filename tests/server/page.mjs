// A page in headless Chromium that asks a server of another origin: PAGE SERVER KEY. Prints what the page could read.

import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [page, server, key] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], // chromium.args would switch CORS off
  headless: "shell",
});
const tab = await browser.newPage();
await tab.goto(page);
const read = await tab.evaluate(
  async (server, key) => {
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
    const messages = [{ role: "user", content: "hi" }];
    async function ask(path, body, sent = headers) {
      try {
        const answer = await fetch(server + path, { method: "POST", headers: sent, body: JSON.stringify(body) });
        const runtime = answer.headers.get("x-enginehouse-runtime");
        return { status: answer.status, runtime, text: await answer.text() };
      } catch (error) {
        return { failed: error.name };
      }
    }
    return {
      origin: location.origin,
      streamed: await ask("/v1/chat/completions", { model: "echo", messages, stream: true }),
      lines: await ask("/api/chat", { model: "echo", messages }),
      unknown: await ask("/v1/chat/completions", { model: "nobody", messages }),
      keyless: await ask("/v1/chat/completions", { model: "echo", messages }, { "content-type": "application/json" }),
    };
  },
  server,
  key,
);
console.log(JSON.stringify(read));
await browser.close();
