"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const fixed = (value, digits) => value === null ? "–" : value.toFixed(digits);

// --- the plots: tooltips, and checkboxes that show and hide curves

// As `spread` in plots.py: moves positions into low..high and at least `gap` apart, by isotonic regression.
function spread(positions, gap, low, high) {
  const order = positions.map((_, i) => i).sort((a, b) => positions[a] - positions[b]);
  const moved = [...positions], blocks = [];
  gap = Math.min(gap, (high - low) / Math.max(positions.length - 1, 1));
  order.forEach((i, rank) => {
    blocks.push({ sum: positions[i] - gap * rank, size: 1 });
    const mean = block => block.sum / block.size;
    while (blocks.length > 1 && mean(blocks.at(-2)) > mean(blocks.at(-1))) {   // pools blocks until the means rise
      const { sum, size } = blocks.pop();
      blocks.at(-1).sum += sum;
      blocks.at(-1).size += size;
    }
  });
  const nearest = blocks.flatMap(({ sum, size }) => Array(size).fill(sum / size));
  order.forEach((i, rank) => {
    moved[i] = Math.min(Math.max(nearest[rank], low), high - gap * (positions.length - 1)) + gap * rank;
  });
  return moved;
}

function placeLabels(svg) {
  const labels = [...svg.querySelectorAll(".curve:not(.off) .label")];
  const frame = svg.querySelector("clipPath rect"), top = +frame.getAttribute("y");
  const heights = spread(labels.map(label => +label.dataset.at), 15, top + 6, top + +frame.getAttribute("height"));
  labels.forEach((label, i) => {
    label.setAttribute("y", heights[i] + 4);
    const leader = label.previousElementSibling;
    leader.setAttribute("d", `M${leader.dataset.from}L${+label.getAttribute("x") - 3} ${heights[i]}`);
  });
}

// Compresses the longest names on phones, so that they fit onto the page.
function fitLabels() {
  for (const label of document.querySelectorAll(".plot .label")) {
    label.removeAttribute("textLength");
    const room = label.ownerSVGElement.viewBox.baseVal.width - label.getAttribute("x");
    if (label.getComputedTextLength() <= room) continue;
    label.setAttribute("textLength", room);
    label.setAttribute("lengthAdjust", "spacingAndGlyphs");
  }
}

addEventListener("resize", fitLabels);
fitLabels();

for (const plot of document.querySelectorAll(".plot")) {
  const tip = plot.querySelector(".tip");
  const clear = svg => {
    svg.classList.remove("chosen");
    svg.querySelectorAll(".here").forEach(each => each.classList.remove("here"));
  };
  const choose = (svg, point) => {
    clear(svg);
    const curve = point.closest(".curve");
    svg.classList.add("chosen");
    curve.classList.add("here");
    point.classList.add("here");
    tip.textContent = `${curve.dataset.name}: ${point.dataset.bpp} bpp, ${point.dataset.db} dB ${plot.dataset.metric}`;
  };
  for (const svg of plot.querySelectorAll("svg")) {
    const points = [...svg.querySelectorAll("circle")];
    svg.addEventListener("pointermove", event => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let nearest = null, least = 30 ** 2;
      for (const point of points) {
        if (point.closest(".off")) continue;
        const distance = (point.cx.baseVal.value - at.x) ** 2 + (point.cy.baseVal.value - at.y) ** 2;
        if (distance < least) [nearest, least] = [point, distance];
      }
      if (nearest) choose(svg, nearest); else clear(svg);
    });
    svg.addEventListener("pointerleave", () => clear(svg));
    // Keyboard: Tab selects a curve, and the arrow keys move along it.
    for (const curve of svg.querySelectorAll(".curve")) {
      const own = [...curve.querySelectorAll("circle")];
      let place = 0;
      curve.addEventListener("focus", () => own.length && choose(svg, own[place]));
      curve.addEventListener("blur", () => clear(svg));
      curve.addEventListener("keydown", event => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step || !own.length) return;
        event.preventDefault();
        place = Math.min(Math.max(place + step, 0), own.length - 1);
        choose(svg, own[place]);
      });
    }
  }
  plot.addEventListener("change", event => {
    for (const svg of plot.querySelectorAll("svg")) {
      svg.querySelector(`.curve[data-curve="${event.target.dataset.curve}"]`).classList.toggle("off", !event.target.checked);
      placeLabels(svg);
    }
  });
}

// --- the images

const image = path => `url(${data.pictures[path]})`;

function figures(element, name, result) {
  const bytes = result.bytes === null ? "no file" : `${result.bytes} bytes`;
  const bpp = result.bpp === null ? `${fixed(result.bpp_estimated, 4)} bpp, estimated` : `${fixed(result.bpp, 4)} bpp`;
  const similarity = result.ms_ssim === null ? "" : `, MS-SSIM ${fixed(result.ms_ssim, 4)}`;
  element.replaceChildren(Object.assign(document.createElement("b"), { textContent: name }),
    `${bytes}, ${bpp}`, document.createElement("br"), `${fixed(result.psnr, 2)} dB${similarity}`);
}

for (const figure of document.querySelectorAll(".comparison")) {
  const find = selector => figure.querySelector(selector);
  const rate = result => result.bytes === null ? result.bpp_estimated : result.bytes;
  const records = data.records.filter(record => record.image === figure.dataset.image).sort((a, b) => rate(a) - rate(b));
  const isBits = shown => shown !== "reconstruction" && shown !== "error";

  // Draws an image of a record, or one of its bit maps by the index of the map, in a layer.
  function draw(layer, record, shown) {
    layer.replaceChildren();
    layer.style.backgroundImage = isBits(shown) ? "none" : image(record[shown]);
    if (!isBits(shown)) return;
    const map = document.createElement("i"), tiles = record.bits_of_slices.length + 1;
    const [rows, columns] = record.bits_places, side = record.bits_stride || 16;   // pixels; may exceed the image
    map.style.width = `${100 * side * columns / record.width}%`;
    map.style.height = `${100 * side * rows / record.height}%`;
    map.style.backgroundImage = image(record.bits);
    map.style.backgroundSize = `100% ${100 * tiles}%`;
    map.style.backgroundPosition = `0 ${100 * +shown / (tiles - 1)}%`;
    layer.append(map);
  }

  const choice = find(".rate input"), left = find("select.left"), right = find("select.right"), stage = find(".stage");

  function show() {
    const record = records[+choice.value];
    const quality = record.quality === null ? "" : `, quality ${record.quality}`;
    const shown = left.value;
    draw(find(".over"), record, shown);
    find(".scale").hidden = shown === "reconstruction";
    if (!isBits(shown)) {
      find(".most").textContent = `${data.errorMax} of 255 levels, mean of the channels`;
    } else {
      const most = shown === "0" ? record.bits_scale_bpp.all : record.bits_scale_bpp.slice;
      const bits = shown === "0" ? "" : `; ${fixed(record.bits_of_slices[+shown - 1], 0)} bits in this slice`;
      find(".most").textContent = `${most.toPrecision(2)} bits per pixel${bits}`;
    }
    figures(find("figcaption .left"), `${record.checkpoint}${quality}`, record);
    const baseline = right.value === "baseline" ? record.baseline : null;
    const plain = right.value === "plain" && records.find(other => other.checkpoint === record.plain && other.quality === record.quality);
    find(".under").replaceChildren();
    find(".under").style.backgroundImage = image(baseline ? baseline.picture : record.original);
    if (plain) {                                             // its bit maps have the scale of the optimized latents
      draw(find(".under"), plain, shown);
      figures(find("figcaption .right"), `${plain.checkpoint}${quality}`, plain);
    } else if (baseline) figures(find("figcaption .right"), `${baseline.name}, quality ${baseline.quality}`, baseline);
    else find("figcaption .right").replaceChildren(
      Object.assign(document.createElement("b"), { textContent: "original" }));
    find(".size").textContent = `${record.width}×${record.height}${record.cropped ? ", the middle of it" : ""}`;
  }

  for (const control of [choice, left, right]) control.addEventListener("input", show);
  find(".wipe").addEventListener("input", event => stage.style.setProperty("--at", `${event.target.value}%`));
  show();
}
