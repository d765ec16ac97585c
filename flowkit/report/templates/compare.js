// The page that compares two runs, for any pair that a reader chooses. The page comes with one pair in full.
//
// What is computed and said here is what compare.py and paired.py compute and say, in the same words. Each run's data
// are one file, data/runs/<name>.js; the choice stands in the address: #a=<run>&as=<sampler>&b=<run>&bs=<sampler>.
(function () {
  "use strict";

  const form = document.getElementById("choice");
  const DRAWS = Number(form.dataset.draws);
  const FACTOR = Number(form.dataset.factor); // half a jackknife's interval over the root of its squared deviations
  const GROUPS = 10, SAME_SPREAD = 1e-3, MOST_IMAGES = 10, MOST_PICTURES = 8;
  const SKILLS = Object.assign(Object.create(null), { skill_r2: "r2" });
  const { count, load, make, row } = window.flowkit;
  const NOTHING = ["–", "", null, 2];
  const byId = (id) => document.getElementById(id);

  // ---- numbers as Python prints them

  function plain(value, decimals = 3) {
    const size = Math.abs(value);
    let text = size.toFixed(decimals);
    const halves = size * 2 ** (decimals + 1); // odd and whole: exactly between two numbers, and Python takes the even one
    if (Number.isInteger(halves) && halves % 2 === 1) {
      const upper = Math.round(Number(text) * 10 ** decimals);
      if (upper % 2 === 1) text = ((upper - 1) / 10 ** decimals).toFixed(decimals);
    }
    return (value < 0 && /[1-9]/.test(text) ? "−" : "") + text;
  }

  function between(low, high, decimals) {
    return low === null || high === null ? "" : plain(low, decimals) + " to " + plain(high, decimals);
  }

  // ---- intervals, as in paired.py

  function drawnRow(at, images) {
    let bits = Math.imul(at + 1, 0x9e3779b9);
    bits = Math.imul(bits ^ (bits >>> 16), 0x21f0aaad);
    bits = Math.imul(bits ^ (bits >>> 15), 0x735a2d97);
    return Math.floor(((bits ^ (bits >>> 15)) >>> 0) / 4294967296 * images);
  }

  function quantile(sorted, share) {
    const place = share * (sorted.length - 1), below = Math.floor(place);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  }

  function r2Interval(differences, spread) {
    const images = differences.length, drawn = new Float64Array(DRAWS);
    if (images < 2) return null;
    for (let draw = 0, at = 0; draw < DRAWS; draw++) {
      let better = 0, weight = 0;
      for (let image = 0; image < images; image++, at++) {
        const chosen = drawnRow(at, images);
        better += differences[chosen];
        weight += spread[chosen];
      }
      drawn[draw] = better / weight;
    }
    drawn.sort();
    return { low: quantile(drawn, 0.025), high: quantile(drawn, 0.975) };
  }

  function jackknifeInterval(value, without, other) {
    const deviations = without.map((one, at) => one - other[at]);
    const mean = sum(deviations) / deviations.length;
    const reach = FACTOR * Math.sqrt(sum(deviations.map((one) => (one - mean) ** 2)));
    return { low: value - reach, high: value + reach };
  }

  const sum = (values) => values.reduce((total, one) => total + one, 0);
  const isSure = (interval) => interval.low > 0 || interval.high < 0;

  // ---- a pair, as in compare.py

  function pairOf(runA, a, runB, b) {
    const ours = runA.spread, theirs = runB.spread;
    const areSame = ours.length > 0 && ours.length === theirs.length && ours.every((one, at) => {
      return Math.abs(one - theirs[at]) <= SAME_SPREAD * Math.abs(theirs[at]);
    });
    const haveErrors = areSame && a.errors.length > 0 && b.errors.length > 0;
    const differences = haveErrors ? a.errors.map((error, at) => b.errors[at] - error) : [];
    const pair = { runA, a, runB, b, areSame, haveErrors, differences };
    pair.r2 = inSummary(pair, "r2") || (haveErrors ? r2Interval(differences, ours) : null);
    return pair;
  }

  function valueOf(sampler, metric) {
    return sampler.values.find((one) => one.metric === metric);
  }

  function inSummary({ runA, a, runB, b }, metric) { // A less B, where one is held against the other at its best
    const less = (one, run) => one.paired.find((known) => known.against === run.run && known.metric === metric);
    const found = b.sampler === runB.samplers[0].sampler && less(a, runB);
    if (found) return found;
    const other = a.sampler === runA.samplers[0].sampler && less(b, runA);
    return other ? { value: -other.value, low: -other.high, high: -other.low } : null;
  }

  function differenceOf(pair, ours, theirs) {
    const known = inSummary(pair, ours.metric);
    return known ? known.value : ours.value - theirs.value;
  }

  function intervalOf(pair, ours, theirs) {
    if (ours.metric === "r2") return pair.r2;
    const known = inSummary(pair, ours.metric);
    if (known) return known;
    if (ours.metric in SKILLS) return intervalOfSkill(pair, SKILLS[ours.metric], ours.value - theirs.value);
    const groups = [ours, theirs].every((one) => one.without.length === GROUPS);
    return pair.areSame && groups ? jackknifeInterval(ours.value - theirs.value, ours.without, theirs.without) : null;
  }

  function intervalOfSkill(pair, metric, skill) {
    const ours = valueOf(pair.a, metric), theirs = valueOf(pair.b, metric);
    if (!ours || !theirs) return null;
    const interval = intervalOf(pair, ours, theirs), by = skill / (ours.value - theirs.value);
    return interval && by > 0 && Number.isFinite(by) ? { low: by * interval.low, high: by * interval.high } : null;
  }

  function overlap(ours, theirs) {
    if ([ours.low, ours.high, theirs.low, theirs.high].includes(null)) return null;
    return ours.low <= theirs.high && theirs.low <= ours.high;
  }

  const isOne = (pair) => pair.runA.slug === pair.runB.slug && pair.a.sampler === pair.b.sampler;

  function verdict(pair) {
    const { a, b, r2 } = pair, ours = valueOf(a, "r2"), theirs = valueOf(b, "r2");
    if (isOne(pair)) return "Both sides are the same run with the same sampler.";
    if (!ours || !theirs) {
      const missing = [a, b].filter((side) => !valueOf(side, "r2")).map((side) => side.label).join(" and ");
      return `Who is ahead is not known: R² was not measured for ${missing}.`;
    }
    const decimals = measureOf(pair, "r2").decimals + 1, value = differenceOf(pair, ours, theirs);
    const size = plain(Math.abs(value), decimals);
    const place = `${a.label} is ${size} ${value >= 0 ? "above" : "below"} ${b.label} in R²`;
    if (!r2) {
      const overlapping = overlap(ours, theirs);
      if (overlapping === null) return `${place} (no intervals).`;
      return `${place} (${overlapping ? "intervals overlap: no difference shown" : "intervals apart"}).`;
    }
    if (!isSure(r2)) {
      const interval = between(r2.low, r2.high, decimals);
      return `Who is ahead is not shown: ${place}, and the 95 % interval of the difference, ${interval}, holds 0.`;
    }
    const [first, second] = value < 0 ? [b.label, a.label] : [a.label, b.label];
    const interval = value < 0 ? between(-r2.high, -r2.low, decimals) : between(r2.low, r2.high, decimals);
    return `${first} is ahead of ${second} in R² by ${size} (95 % interval ${interval}, image by image).`;
  }

  function smaller(pair) {
    if (!pair.haveErrors) return "Errors of the same images are not known of both: they are kept for a run’s best samplers.";
    const images = pair.differences.length, times = pair.differences.filter((one) => one > 0).length;
    const share = plain(100 * times / images, 1);
    return `The error of A is the smaller one on ${count(times)} of ${count(images)} images (${share} %).`;
  }

  function source(pair) {
    if (!valueOf(pair.a, "r2") || !valueOf(pair.b, "r2") || !pair.r2) return "";
    if (inSummary(pair, "r2")) return "Here it is that of the summary, as the page of the run has it.";
    return "The summary does not hold these two against each other: for R² it is from " +
      `${count(DRAWS)} draws of the images, the same draws for any such pair.`;
  }

  function measureOf(pair, metric) {
    return [...pair.runA.measures, ...pair.runB.measures].find((one) => one.metric === metric);
  }

  function measuresOf(pair) {
    const names = new Set([...pair.a.values, ...pair.b.values].map((one) => one.metric));
    return Array.from(names, (metric) => measureOf(pair, metric)).sort((one, other) => {
      return one.order - other.order || (one.metric < other.metric ? -1 : 1);
    });
  }

  function valueCell(shown, value) {
    if (!value) return NOTHING;
    return [plain(value.value, shown.decimals), between(value.low, value.high, shown.decimals)];
  }

  function isBetter(shown, value, than) {
    if (shown.better === "nearer 1") return Math.abs(value - 1) < Math.abs(than - 1);
    return shown.better === "higher" ? value > than : shown.better === "lower" && value < than;
  }

  function ahead(shown, ours, theirs, interval) {
    if (shown.better === "neither") return "–";
    const isA = isBetter(shown, ours.value, theirs.value), isB = isBetter(shown, theirs.value, ours.value);
    if (!isA && !isB) return "equal";
    const side = isA ? "A" : "B";
    if (interval) {
      return isSure(interval) ? [`${side} is ahead`, "image by image"] : ["not shown", `${side} ahead, 0 is possible`];
    }
    const overlapping = overlap(ours, theirs);
    if (overlapping) return ["not shown", `${side} ahead, intervals overlap`];
    return [`${side} is ahead`, overlapping === null ? "no intervals" : "intervals apart"];
  }

  function metricLine(pair, shown) {
    const ours = valueOf(pair.a, shown.metric), theirs = valueOf(pair.b, shown.metric);
    const head = [shown.label, shown.better === "neither" ? "" : shown.better + " is better"];
    const cells = [head, valueCell(shown, ours), valueCell(shown, theirs)];
    if (!ours || !theirs) return [...cells, NOTHING, NOTHING];
    const interval = intervalOf(pair, ours, theirs), value = differenceOf(pair, ours, theirs);
    const decimals = shown.decimals && shown.decimals + 1;
    const note = interval ? between(interval.low, interval.high, decimals) : "";
    return [...cells, [(value > 0 ? "+" : "") + plain(value, decimals), note], ahead(shown, ours, theirs, interval)];
  }

  function counted(lines) {
    const last = lines.map((cells) => cells[cells.length - 1]);
    const found = last.map((cell) => cell === NOTHING ? "not measured" : [cell].flat()[0]);
    const times = (words) => count(found.filter((one) => one === words).length);
    const ahead = ["A", "B"].map((side) => `${side} is ahead in ${times(`${side} is ahead`)}`).join(" and ");
    const others = [["equal", "equal"], ["–", "without a direction"], ["not measured", "not measured in both"]];
    const rest = others.filter(([text]) => found.includes(text)).map(([text, words]) => `${times(text)} ${words}`);
    const more = rest.length ? ` The rest: ${rest.join(", ")}.` : "";
    return `Of ${count(lines.length)} metrics, ${ahead}; in ${times("not shown")} it is not shown who is.${more}`;
  }

  function settingsOf(pair) {
    const runs = [pair.runA, pair.runB], known = runs.map((run) => new Map(run.settings));
    const without = new Set(runs.filter((run) => !run.settings.length).map((run) => run.run));
    if (without.size) return [`There is no record of settings of ${Array.from(without).join(" and ")}.`, []];
    const keys = Array.from(new Set([...known[0].keys(), ...known[1].keys()])).sort();
    const lines = keys.filter((key) => known[0].get(key) !== known[1].get(key)).map((key) => {
      return [key, ...known.map((one) => one.has(key) ? one.get(key) : "not set")];
    });
    return [`${count(lines.length)} of ${count(keys.length)} settings differ.`, lines];
  }

  function figuresOf(pair) {
    const sources = [[pair.a.figures, pair.b.figures]];
    if (pair.runA.slug !== pair.runB.slug) sources.push([pair.runA.figures, pair.runB.figures]);
    return sources.flatMap(([mine, others]) => mine.flatMap((ours) => {
      return others.filter((theirs) => theirs.name === ours.name).map((theirs) => [ours, theirs]);
    }));
  }

  function byMost(pair) {
    const size = (index) => Math.abs(pair.differences[index]);
    return (one, other) => size(other) - size(one) || one - other;
  }

  function smallerBy(pair, index) {
    const difference = pair.differences[index];
    return difference === 0 ? "equal" : `${difference > 0 ? "A" : "B"} by ${plain(Math.abs(difference))}`;
  }

  function sharedOf(pair) {
    const others = new Map(pair.b.images.map((one) => [one.index, one])), most = byMost(pair);
    const shared = pair.haveErrors ? pair.a.images.filter((one) => others.has(one.index)) : [];
    shared.sort((one, other) => most(one.index, other.index));
    return shared.slice(0, MOST_PICTURES).map((one) => [one, others.get(one.index)]);
  }

  // ---- elements

  function picture(path, shown, className) {
    const image = make("img", className);
    image.loading = "lazy"; // before its address, or it would be fetched at once
    image.alt = shown.alt;
    image.width = shown.width;
    image.height = shown.height;
    image.src = path;
    return image;
  }

  const thumbnail = (shown, name) => picture(shown.path, shown, name + (shown.width < 96 ? " pixels" : ""));

  function wrap(tag, className, ...parts) {
    const element = make(tag, className);
    element.append(...parts);
    return element;
  }

  function fill(table, words, lines) {
    const heads = table.tHead.rows[0].cells;
    words.forEach((text, at) => { heads[at + 1].textContent = text; });
    table.tBodies[0].replaceChildren(...lines.map((cells) => row(cells, heads, "", "")));
  }

  function showSide(letter, run, sampler) {
    const link = make("a", "", sampler.label);
    link.href = `runs/${run.slug}.html`;
    const parts = [make("strong", "", letter.toUpperCase()), link, make("span", "", run.question)];
    byId(`side-${letter}`).replaceChildren(...parts.flatMap((part) => [part, " "]));
  }

  function showAxis(pair) {
    const ours = valueOf(pair.a, "r2"), theirs = valueOf(pair.b, "r2"), axis = byId("axis");
    axis.hidden = !(ours && theirs && pair.r2);
    if (axis.hidden) return;
    const value = differenceOf(pair, ours, theirs), { low, high } = pair.r2;
    const reach = 1.2 * Math.max(Math.abs(value), Math.abs(low), Math.abs(high), 1e-9);
    const [left, middle, right] = [low, value, high].map((at) => 50 + 50 * at / reach);
    const whisker = axis.querySelector(".axis-whisker");
    whisker.style.left = left + "%";
    whisker.style.width = right - left + "%";
    axis.querySelector(".axis-dot").style.left = middle + "%";
  }

  function showFigures(pair) {
    const found = figuresOf(pair);
    byId("figures").closest("section").hidden = !found.length;
    byId("figures").replaceChildren(...found.flatMap((both) => {
      const drawings = both.map((shown, at) => {
        const words = wrap("figcaption", "", make("strong", "", "AB"[at]), " " + [pair.a, pair.b][at].label);
        return wrap("figure", "plot", picture(shown.image, shown, ""), words);
      });
      return [make("h3", "", both[0].title), wrap("div", both[0].width > 700 ? "both broad" : "both", ...drawings)];
    }));
  }

  function imageLine(pair, captions, index) {
    const errors = [pair.a, pair.b].map((side) => plain(side.errors[index]));
    return [[`image ${index}`, captions.get(index) || ""], ...errors, smallerBy(pair, index)];
  }

  function sharedImage(pair, ours, theirs) {
    const maps = [["A", ours], ["B", theirs]].map(([letter, one]) => {
      return wrap("div", "lettered", thumbnail(one.error_map, "map"), make("span", "", letter));
    });
    const [a, b] = [pair.a, pair.b].map((side) => plain(side.errors[ours.index]));
    const words = make("span", "", `error ${a} of A, ${b} of B; smaller: ${smallerBy(pair, ours.index)}`);
    const picture = ours.picture ? [thumbnail(ours.picture, "thumb")] : [];
    const caption = wrap("figcaption", "", ...(ours.caption ? [make("q", "", ours.caption)] : []), words);
    return wrap("figure", "item", wrap("div", "pair", ...picture, ...maps), caption);
  }

  function showImages(pair) {
    const captions = new Map([...pair.b.images, ...pair.a.images].map((one) => [one.index, one.caption]));
    const order = Array.from(pair.differences.keys()).sort(byMost(pair)).slice(0, MOST_IMAGES);
    byId("images").closest("section").hidden = !order.length;
    fill(byId("images").querySelector("table"), [], order.map((index) => imageLine(pair, captions, index)));
    const shared = sharedOf(pair);
    byId("shared-section").hidden = !shared.length;
    byId("shared").replaceChildren(...shared.map(([ours, theirs]) => sharedImage(pair, ours, theirs)));
  }

  function show(pair) {
    showSide("a", pair.runA, pair.a);
    showSide("b", pair.runB, pair.b);
    byId("verdict").textContent = verdict(pair);
    showAxis(pair);
    byId("smaller").textContent = smaller(pair);
    byId("source").textContent = source(pair);
    const measures = measuresOf(pair), lines = measures.map((shown) => metricLine(pair, shown));
    byId("count").textContent = counted(lines);
    for (const [place, chosen] of [["key", lines.filter((line, at) => measures[at].is_key)], ["metrics", lines]]) {
      fill(byId(place).querySelector("table"), [`A: ${pair.a.label}`, `B: ${pair.b.label}`], chosen);
    }
    const [words, settings] = settingsOf(pair);
    byId("settings-words").textContent = words;
    byId("settings").hidden = !settings.length;
    fill(byId("settings").querySelector("table"), [`A: ${pair.runA.run}`, `B: ${pair.runB.run}`], settings);
    showFigures(pair);
    showImages(pair);
  }

  // ---- the choice

  const selects = { a: [byId("run-a"), byId("sampler-a")], b: [byId("run-b"), byId("sampler-b")] };

  function chosen() {
    const asked = new URLSearchParams(location.hash.slice(1));
    return ["a", "b"].map((letter) => {
      const runs = selects[letter][0], slug = asked.get(letter) || runs.querySelector("[selected]").value;
      const isKnown = Array.from(runs.options).some((one) => one.value === slug);
      return { letter, slug, sampler: asked.get(letter + "s"), isKnown };
    });
  }

  function takeUp(side, run) {
    const [runs, samplers] = selects[side.letter];
    const found = run.samplers.find((one) => one.sampler === side.sampler) || run.samplers[0];
    runs.value = side.slug;
    samplers.replaceChildren(...run.samplers.map((one) => {
      const option = make("option", "", one.sampler);
      option.value = one.sampler;
      return option;
    }));
    samplers.value = found.sampler;
    samplers.closest("label").hidden = run.samplers.length < 2;
    return found;
  }

  let isAsPrinted = true;

  function update() {
    const sides = chosen(), unknown = sides.filter((side) => !side.isKnown);
    byId("trouble").textContent = unknown.map((side) => `There is no run “${side.slug}” in this report. `).join("");
    if (unknown.length) return;
    const asked = location.hash;
    Promise.all(sides.map((side) => load(`data/runs/${side.slug}.js`))).then((runs) => {
      if (location.hash !== asked) return; // another pair was chosen in the meantime
      const [a, b] = sides.map((side, at) => takeUp(side, runs[at]));
      if (!isAsPrinted || asked) show(pairOf(runs[0], a, runs[1], b));
      isAsPrinted = isAsPrinted && !asked;
    }).catch((error) => { byId("trouble").textContent = error.message; });
  }

  function choose(sides) {
    const asked = new URLSearchParams();
    for (const [letter, run, sampler] of sides) {
      asked.set(letter, run);
      if (sampler) asked.set(letter + "s", sampler);
    }
    location.hash = asked.toString();
  }

  function current() {
    return ["a", "b"].map((letter) => [letter, selects[letter][0].value, selects[letter][1].value]);
  }

  for (const letter of ["a", "b"]) {
    selects[letter][0].addEventListener("change", () => {
      choose(current().map((side) => side[0] === letter ? side.slice(0, 2) : side));
    });
    selects[letter][1].addEventListener("change", () => { choose(current()); });
  }
  byId("swap").addEventListener("click", () => {
    const [a, b] = current();
    choose([["a", b[1], b[2]], ["b", a[1], a[2]]]);
  });
  window.addEventListener("hashchange", () => {
    if (!location.hash || /[#&][ab]=/.test(location.hash)) update(); // else the way to another part of the page
  });
  document.querySelector(".no-script").remove();
  form.hidden = false;
  update();
})();
