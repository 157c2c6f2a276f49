"use strict";
(() => {
  const $ = id => document.getElementById(id), all = (name, within = document) => [...within.querySelectorAll(name)];
  const make = (name, properties = {}, ...inside) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...inside);
    return made;
  };
  const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* it is forgotten */ } };
  const kept = name => { try { return localStorage.getItem(name); } catch { return null; } };
  let chinese = (kept("interface") ?? navigator.language).startsWith("zh") ? 1 : 0; // the interface's language
  const say = (english, other) => [english, other][chinese];
  const languageOf = text => /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]/.test(text) ? "zh" : "en";
  const number = value => value.toFixed(2).replace("-", "−");
  let about = null; // what /v1/captioner says

  // ---- what the page says; live regions are emptied, never hidden: screen readers must know them before they speak

  const nothing = () => "";
  const told = {}; // by place, a function, as the interface's language may change
  function tell(id, text = nothing) {
    told[id] = text;
    $(id).replaceChildren(...[text()].flat());
  }
  function aloud(id, text) { // also what it says already
    const empty = () => "";
    tell(id, empty);
    setTimeout(() => { if (told[id] === empty) tell(id, text); }, 100);
  }
  const described = (text, otherwise) => // a picture, by its caption
    text ? { alt: text, lang: languageOf(text) } : { alt: otherwise, lang: say("en", "zh") };

  // ---- asking the service

  let token = sessionStorage.getItem("token") ?? "", tokenAsked = null;
  function judgeToken(wrong) {
    $("token").setAttribute("aria-invalid", wrong);
    aloud("token-problem", () => wrong ? say("Wrong token: try again.", "口令不对：请再试一次。") : "");
  }
  function askForToken() { // one dialog, however many requests want it
    tokenAsked ??= new Promise(resolve => {
      $("token").value = "";
      $("ask-token").addEventListener("close", () => { tokenAsked = null; resolve(); }, { once: true });
      $("ask-token").showModal();
      judgeToken(token !== "");
    });
    return tokenAsked;
  }
  $("ask-token").addEventListener("cancel", event => event.preventDefault());
  $("token-form").addEventListener("submit", event => {
    const given = $("token").value.trim();
    if (/^[\x21-\x7e]+$/.test(given)) { // no other can be sent
      token = given;
    } else {
      event.preventDefault();
      judgeToken(true);
    }
  });

  const inChinese = {
    400: "图片损坏或不完整：请重新保存或下载", 403: "其他网站的网页不能使用这项服务：请直接打开它的网址",
    404: "找不到它，或者文件已经读不了：请重新搜索", 408: "图片没有及时传完：请再发一次", 413: "图片太大：请先缩小",
    415: "这不是这里能读的图片格式", 421: "这个网址不是服务的名称：请用 127.0.0.1 打开，或用 --name 启动服务",
    422: "模型不认识这些词，或者做不到：请换个说法", 429: "排队的图片太多：请过一会儿再试",
    500: "服务出错了：原因在它的日志里", 503: "服务暂时不能回答：请稍后再试", 504: "没有及时得到结果：请稍后再试",
  };
  class Problem extends Error {
    constructor(status, reason) {
      super(reason);
      this.status = status;
    }
    get text() {
      if (this.status === 0) return say("The service cannot be reached. Is it still running?", "连接不上服务。它还在运行吗？");
      return say(this.message, inChinese[this.status] ?? this.message);
    }
  }
  const textOf = problem => () => problem.text ?? String(problem);
  const pause = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));

  async function ask(path, options = {}) { // the answer, or a Problem; waits where too much is asked at once
    for (let times = 1; ; times++) {
      const used = token; // another request may ask for one meanwhile
      let answer;
      try {
        answer = await fetch(path, { ...options, headers: used ? { Authorization: `Bearer ${used}` } : {} });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Problem(0, String(error));
      }
      if (answer.ok) {
        if (used) sessionStorage.setItem("token", used); // only now is it known to be right
        return answer;
      }
      const reason = (await answer.json().catch(() => ({}))).error ?? answer.statusText;
      if (answer.status === 401) {
        if (used === token) await askForToken();
      } else if (answer.status === 429 && times < 10) {
        await pause(Number(answer.headers.get("Retry-After")) || 1);
      } else {
        throw new Problem(answer.status, reason);
      }
    }
  }

  async function smaller(file) { // as a JPEG that the service reads, where the browser can decode it
    const bitmap = await createImageBitmap(file), scale = Math.min(1, 1600 / Math.max(bitmap.width, bitmap.height));
    const canvas = make("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", .92));
  }

  async function send(path, query, file, signal) { // a picture
    const post = body => {
      const form = new FormData();
      form.append("picture", body, file.name || "picture");
      return ask(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: form, signal });
    };
    try {
      return await (await post(file)).json();
    } catch (problem) {
      if (![413, 415].includes(problem.status)) throw problem;
      const again = await smaller(file).catch(() => null);
      if (!again) throw problem;
      return (await post(again)).json();
    }
  }

  // ---- where words looked: as src/figures.py draws it

  const ramp = [[8, 8, 28, 200], [44, 14, 66, 176], [140, 36, 92, 132], [250, 130, 60, 72], [255, 220, 110, 24]];
  const faint = 3;
  const colour = v => {
    const at = Math.min(1, Math.max(0, v)) * (ramp.length - 1), i = Math.min(Math.floor(at), ramp.length - 2);
    return ramp[i].map((c, k) => c + (ramp[i + 1][k] - c) * (at - i));
  };
  const fill = v => { const [r, g, b, a] = colour(v); return `rgba(${r}, ${g}, ${b}, ${a / 255})`; };

  function draw(attention, k) { // the weights of word k over the picture
    const canvas = $("overlay"), g = canvas.getContext("2d"), picture = $("picture");
    const W = canvas.width = 480, H = canvas.height = Math.round(480 * picture.naturalHeight / picture.naturalWidth);
    const row = attention.weights[k], peak = Math.max(faint / row.length, ...row), values = row.map(w => w / peak);
    const paint = ([x1, y1, x2, y2], v) => {
      const area = [x1 * W, y1 * H, (x2 - x1) * W, (y2 - y1) * H];
      g.clearRect(...area);
      if (v !== undefined) { g.fillStyle = fill(v); g.fillRect(...area); }
      return area;
    };
    paint([0, 0, 1, 1], 0);
    if (attention.grid) {
      const [rows, columns] = attention.grid, small = new ImageData(columns, rows);
      const cells = make("canvas", { width: columns, height: rows }), boxes = attention.boxes;
      values.forEach((v, i) => small.data.set(colour(v), 4 * i));
      cells.getContext("2d").putImageData(small, 0, 0);
      g.imageSmoothingQuality = "high";
      g.drawImage(cells, ...paint([...boxes[0].slice(0, 2), ...boxes[boxes.length - 1].slice(2)]));
    } else { // the strongest last: where boxes overlap, it is seen
      values.map((v, i) => [v, i]).sort((a, b) => a[0] - b[0]).forEach(([v, i]) => {
        const area = paint(attention.boxes[i], v);
        if (v > .5) { g.strokeStyle = "#fff"; g.lineWidth = 2 * v; g.strokeRect(...area); }
      });
    }
  }

  function place(attention, k) { // in words, for those who do not see it
    const row = attention.weights[k], [x1, y1, x2, y2] = attention.boxes[row.indexOf(Math.max(...row))];
    const third = v => Math.min(2, Math.max(0, Math.floor(3 * v)));
    const x = third((x1 + x2) / 2), y = third((y1 + y2) / 2);
    if (x === 1 && y === 1) return say("looked at the middle most", "主要看了中间");
    const across = say(["left", "", "right"], ["左", "", "右"])[x], down = say(["top", "", "bottom"], ["上", "", "下"])[y];
    return say(`looked at the ${[down, across].filter(Boolean).join(" ")} most`, `主要看了${across}${down}${x === 1 || y === 1 ? "边" : "方"}`);
  }

  // ---- pictures and their captions

  const MOST = 24;
  const entries = []; // newest first
  let shown = null, chosen = 0, running = null;
  const query = () => {
    const asked = { attention: about?.attends ?? false, alternatives: Math.min(4, about?.alternatives ?? 0) };
    if ($("language").value) asked.language = $("language").value;
    if ($("length").value) asked.length = $("length").value;
    return asked;
  };
  const key = () => JSON.stringify(query());

  function take(files) { // captions one after the other, the first of them shown
    const pictures = [...files].filter(file => file.type.startsWith("image/") || !file.type);
    if (!pictures.length) return aloud("problem", () => say("That is not a picture.", "这不是图片。"));
    for (const file of pictures.reverse()) entries.unshift({ file, url: URL.createObjectURL(file), answers: {}, problems: {} });
    for (const old of entries.splice(MOST)) URL.revokeObjectURL(old.url);
    show(entries[0]);
    work();
  }

  async function work() { // what is shown first, then the others
    if (!about) return;
    const waits = entry => !entry.answers[key()] && !entry.problems[key()];
    const entry = [shown, ...entries].find(each => each && waits(each));
    if (running && (!entry || running.entry === entry && running.key === key())) return;
    if (running && (entry !== shown)) return; // it is of another picture, which may end
    running?.abort.abort();
    if (!entry) return;
    const own = running = { entry, key: key(), abort: new AbortController() };
    try {
      entry.answers[own.key] = await send("/v1/caption", query(), entry.file, own.abort.signal);
    } catch (problem) {
      if (problem.name !== "AbortError") entry.problems[own.key] = problem instanceof Problem ? problem : new Problem(-1, String(problem));
    }
    if (running === own) running = null;
    if (entry === shown) show(entry, true);
    work();
  }

  function show(entry, chosenNow = false) {
    if (entry !== shown) chosen = 0;
    shown = entry;
    if ($("picture").src !== entry.url) $("picture").src = entry.url;
    $("photo").hidden = false;
    $("empty").hidden = true;
    const answer = entry.answers[key()], problem = entry.problems[key()];
    tell("problem", problem && textOf(problem));
    $("busy").hidden = Boolean(answer || problem);
    $("result").hidden = !answer;
    look(-1);
    const unnamed = say("The chosen picture", "选中的图片");
    if (answer) {
      const every = [answer, ...answer.alternatives];
      chosen = Math.min(chosen, every.length - 1);
      words(every[chosen]);
      const { text: said, confidence: sure } = every[chosen];
      tell("confidence", () => sure === null ? "" : say(
        `Probability that it is a good caption: ${(100 * sure).toFixed(0)} %`, `是好描述的概率：${(100 * sure).toFixed(0)}%`));
      tell("unfamiliar", () => (answer.unfamiliar ?? 0) < .99 ? "" : say(
        "This picture is unlike the pictures it learned from.", "这张图片不像它学习过的图片。"));
      $("others").hidden = every.length < 2;
      const focused = document.activeElement?.dataset?.choice;
      $("alternatives").replaceChildren(...every.map((each, i) => {
        const text = make("span", { textContent: each.text || "…", lang: languageOf(each.text) });
        const score = make("small", { textContent: number(each.score), title: say("the search's score", "搜索的评分") });
        const button = make("button", { type: "button", onclick: () => { chosen = i; show(entry, true); } }, text, score);
        button.dataset.choice = i;
        button.setAttribute("aria-pressed", i === chosen);
        return make("li", {}, button);
      }));
      if (focused !== undefined) all("[data-choice]")[focused]?.focus();
      Object.assign($("picture"), described(said, unnamed));
      if (chosenNow) aloud("status", () => [say("Caption: ", "描述："), make("span", { textContent: said, lang: languageOf(said) })]);
    } else {
      Object.assign($("picture"), described("", unnamed));
      tell("status", problem ? nothing : () => say("Captioning …", "正在描述……"));
    }
    $("history").hidden = entries.length < 2;
    const at = entries.indexOf(document.activeElement?.entry);
    $("strip").replaceChildren(...entries.map((each, i) => {
      const button = make("button", { type: "button", entry: each, onclick: () => { each.problems = {}; show(each, true); work(); } });
      button.append(make("img", { src: each.url, ...described(each.answers[key()]?.text, say(`Picture ${i + 1}`, `图片 ${i + 1}`)) }));
      if (each === entry) button.setAttribute("aria-current", "true");
      return make("li", {}, button);
    }));
    if (at >= 0) all("#strip button")[at].focus();
  }

  let attention = null; // of the caption that is shown
  function look(k) { // at word k; −1: at none
    all(".word").forEach((word, i) => word.classList.toggle("on", i === k));
    const there = k >= 0 && attention !== null && $("picture").naturalWidth > 0;
    if (there) draw(attention, k);
    $("overlay").classList.toggle("on", there);
    $("overlay").dataset.word = there ? k : "";
  }
  const focusedWord = () => all(".word").indexOf(document.activeElement);

  function words(caption) {
    attention = caption.attention;
    $("hint").hidden = !attention;
    $("words").lang = languageOf(caption.text);
    let at = 0;
    const parts = [];
    caption.words.forEach((text, i) => { // between them is what the sentence has there
      const found = caption.text.indexOf(text, at), from = found < 0 ? at : found;
      parts.push(caption.text.slice(at, from));
      at = found < 0 ? at : found + text.length;
      const word = make("button", { type: "button", className: "word", textContent: text, tabIndex: i ? -1 : 0, disabled: !attention });
      if (attention) word.setAttribute("aria-description", place(attention, i));
      word.addEventListener("pointerenter", () => look(i));
      word.addEventListener("click", () => word.focus()); // Safari does not, by itself
      word.addEventListener("focus", () => { all(".word").forEach((each, j) => { each.tabIndex = j === i ? 0 : -1; }); look(i); });
      word.addEventListener("blur", () => look(-1));
      parts.push(word);
    });
    $("words").replaceChildren(...parts, caption.text.slice(at), caption.words.length ? "" : say("(no words)", "（没有词）"));
  }
  $("words").addEventListener("pointerleave", () => look(focusedWord()));
  $("words").addEventListener("keydown", event => {
    const every = all(".word"), i = focusedWord(), last = every.length - 1;
    const to = { ArrowRight: Math.min(i + 1, last), ArrowLeft: Math.max(i - 1, 0), Home: 0, End: last }[event.key];
    if (event.key === "Escape") document.activeElement.blur();
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    every[to].focus();
  });
  for (const id of ["language", "length"]) {
    $(id).addEventListener("change", () => {
      keep(id, $(id).value);
      if (shown) { chosen = 0; show(shown, true); work(); }
    });
  }

  // ---- search

  let asked = 0, results = [];
  async function search(request, words) {
    const own = ++asked;
    tell("search-problem");
    tell("found", () => say("Searching …", "正在搜索……"));
    try {
      const answer = await request();
      if (own !== asked) return; // a later one is there
      found(answer.results, words);
    } catch (problem) {
      if (own !== asked) return;
      tell("found");
      failed(problem);
    }
  }
  function failed(problem) {
    tell("search-problem", textOf(problem));
    $("search-problem").scrollIntoView({ block: "nearest" }); // who chose a result may be far below
  }
  const many = count => say(count === 1 ? "1 picture" : `${count} pictures`, `${count} 张图片`);
  const like = count => say(`${many(count)} like yours`, `${count} 张相似的图片`);
  const bySentence = async text => (await ask(`/v1/search?${new URLSearchParams({ q: text, by: $("by").value })}`)).json();
  const byPicture = file => search(async () => send("/v1/search", {}, await file), like);

  async function thumbnail(id) { // its address within this page
    const load = async () => URL.createObjectURL(await (await ask(`/v1/pictures/${id}`)).blob());
    return load().catch(() => pause(2).then(load)); // the service may be busy
  }
  async function whole(result) {
    const blob = await (await ask(`/v1/pictures/${result.id}?side=1024`)).blob();
    return new File([blob], result.name, { type: "image/jpeg" });
  }
  async function captionIt(result) {
    tell("search-problem");
    try {
      const file = await whole(result);
      open("caption");
      $("tab-caption").focus();
      take([file]);
    } catch (problem) {
      failed(problem);
    }
  }

  function found(others, words) {
    const within = $("grid").contains(document.activeElement);
    for (const { picture } of results) picture.then(URL.revokeObjectURL, nothing);
    results = others.map(each => ({ ...each, picture: thumbnail(each.id) }));
    tell("found", () => results.length ? words(results.length) : say("Nothing was found.", "什么也没有找到。"));
    showResults();
    if (within) ($("grid").querySelector("button") ?? $("query")).focus(); // what had it is gone
  }
  function showResults() {
    $("grid").replaceChildren(...results.map(each => {
      const lines = each.caption.split("\n"), image = make("img", described(lines[0], each.name));
      each.picture.then(url => { image.src = url; })
        .catch(() => Object.assign(image, described("", say(`${each.name}: cannot be shown`, `${each.name}：无法显示`))));
      const look = make("button", { type: "button", className: "look", onclick: () => captionIt(each) }, image);
      look.setAttribute("aria-description", say("caption it", "描述它"));
      const like = make("button", { type: "button", textContent: say("Similar", "相似"), onclick: () => byPicture(whole(each)) });
      like.setAttribute("aria-label", say(`Pictures similar to ${each.name}`, `与 ${each.name} 相似的图片`));
      const text = make("p", {}, ...lines.map(line => make("span", { textContent: line, lang: languageOf(line) })));
      return make("li", {}, look, text, make("div", {}, make("small", { textContent: `${each.name} · ${number(each.score)}` }), like));
    }));
  }
  $("form").addEventListener("submit", event => {
    event.preventDefault();
    const text = $("query").value.trim();
    if (text) search(() => bySentence(text), many);
  });

  // ---- how pictures come in

  const openTab = () => $("search").hidden ? "caption" : "search";
  const came = files => {
    if (openTab() === "caption") take(files);
    else if (about?.index && files.length) byPicture(files[0]);
  };
  for (const id of ["choose", "camera", "like"]) {
    $(id).addEventListener("change", () => {
      const files = [...$(id).files];
      $(id).value = ""; // so that the same one can be chosen again
      if (files.length) came(files);
    });
  }
  document.addEventListener("paste", event => {
    if (event.clipboardData.files.length) { event.preventDefault(); came([...event.clipboardData.files]); }
  });
  const dragged = event => [...event.dataTransfer?.types ?? []].includes("Files");
  document.addEventListener("dragover", event => {
    if (!dragged(event)) return;
    event.preventDefault();
    $("dropping").hidden = false;
  });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) $("dropping").hidden = true; });
  document.addEventListener("drop", event => {
    $("dropping").hidden = true;
    if (!dragged(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) came([...event.dataTransfer.files]);
  });

  // ---- tabs, interface language

  const tabs = all("[role=tab]");
  function open(name) {
    for (const tab of tabs) {
      const on = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !on;
    }
  }
  tabs.forEach((tab, i) => {
    const name = tab.getAttribute("aria-controls");
    tab.addEventListener("click", () => open(name));
    tab.addEventListener("keydown", event => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = tabs[(i + (event.key === "ArrowRight" ? 1 : tabs.length - 1)) % tabs.length];
      open(other.getAttribute("aria-controls"));
      other.focus();
    });
  });

  const texts = all("[data-zh]").map(each => [each, [each.textContent, each.dataset.zh]]);
  const attributes = ["aria-label", "placeholder"].flatMap(name =>
    all(`[data-zh-${name}]`).map(each => [each, name, [each.getAttribute(name), each.getAttribute(`data-zh-${name}`)]]));
  function choices() { // of language and length, in the interface's language
    const fill = (id, options, first) => {
      const before = $(id).value || kept(id) || first;
      $(id).replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
      $(id).value = options.some(([value]) => value === before) ? before : first;
      $(`${id}-option`).hidden = options.length < 2;
    };
    const names = new Intl.DisplayNames([say("en", "zh")], { type: "language", fallback: "code" });
    const known = about.languages, wished = say("en", "zh");
    const first = known.includes(wished) ? wished : about.default.find(tag => known.includes(tag)) ?? known[0] ?? "";
    fill("language", known.map(tag => [tag, names.of(tag)]), first);
    const named = { short: say("short", "短"), medium: say("medium", "中"), long: say("long", "长") };
    const lengths = Object.entries(about.lengths).map(([name, count]) => [name, say(`${named[name]} (${count} words)`, `${named[name]}（${count} 词）`)]);
    fill("length", lengths.length ? [["", say("any", "不限")], ...lengths] : [], "");
  }
  function speak() {
    document.documentElement.lang = say("en", "zh");
    texts.forEach(([each, pair]) => { each.textContent = pair[chinese]; });
    attributes.forEach(([each, name, pair]) => each.setAttribute(name, pair[chinese]));
    Object.assign($("interface"), { textContent: say("中文", "English"), lang: say("zh", "en") });
    document.title = say("Captionary: captions of pictures", "Captionary：给图片写描述");
    for (const id in told) tell(id, told[id]);
    showResults();
    if (!about) return;
    choices();
    tell("no-index", () => about.index ? "" : say(
      "Nothing can be searched here yet: index a folder of pictures, and start the service with --index.",
      "这里还没有可以搜索的图片：请先为一个图片文件夹建立索引，再用 --index 启动服务。"));
    $("searching").hidden = !about.index;
    if (shown) show(shown);
  }
  $("interface").addEventListener("click", () => {
    chinese = 1 - chinese;
    keep("interface", say("en", "zh"));
    speak();
  });

  async function begin() {
    speak();
    while (!about) {
      try {
        about = await (await ask("/v1/captioner")).json();
      } catch (problem) {
        tell("problem", textOf(problem));
        await pause(5); // the service may start anew
      }
    }
    tell("problem");
    speak();
    work();
  }
  begin();
})();
