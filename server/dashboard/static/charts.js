// Draws what the page tells in data-chart, with BokehJS: colours are the page's own, so that dark is dark. As rounds are
// added only the data change; other curves or colours make a new figure.
"use strict";
(() => {
  const DASHES = ["solid", "dashed", "dotted"];
  const MARKERS = ["circle", "square", "diamond"];
  const drawn = new WeakMap();

  // How values of a unit are told: on the axis, at the pointer, and by what they are divided.
  function units(chart) {
    if (chart.unit !== "bytes") {
      const name = { "%": " %%", J: " J" }[chart.unit] || "";
      return { axis: `%.4g${name}`, told: `@value{0.[000]}${name.replace("%%", "%")}`, size: 1 };
    }
    const most = Math.max(...chart.series.flatMap(series => series.values));
    const power = Math.min(3, Math.max(0, Math.floor(Math.log2(most || 1) / 10)));
    const name = ["B", "KiB", "MiB", "GiB"][power];
    return { axis: `%.4g ${name}`, told: `@value{0.[00]} ${name}`, size: 1024 ** power };
  }

  // The axis goes on before the curve, as far as there are rounds to come.
  function range(chart) {
    const end = Math.min(chart.last_round, Math.max(5, 2 * Math.max(...chart.rounds)));
    return end > 1 ? { start: 1 - 0.02 * end, end: 1.02 * end } : { start: 0, end: 2 };
  }

  function points(chart, series) {
    const { size } = units(chart);
    const known = series.values.map((value, index) => [chart.rounds[index], value]).filter(([, value]) => value !== null);
    return { round: known.map(([round]) => round), value: known.map(([, value]) => value / size) };
  }

  function figure(chart, sources) {
    const style = getComputedStyle(document.documentElement);
    const colour = name => style.getPropertyValue(name).trim();
    const colours = ["--accent", "--second", "--third"].map(colour);
    const unit = units(chart);
    const plot = Bokeh.Plotting.figure({
      height: 250,
      sizing_mode: "stretch_width",
      tools: [],
      toolbar_location: null,
      x_range: new Bokeh.Range1d(range(chart)),
      y_range: new Bokeh.DataRange1d(chart.unit === "%" ? { range_padding: 0.08 } : { start: 0, range_padding: 0.08 }),
      background_fill_color: colour("--card"),
      border_fill_color: colour("--card"),
      outline_line_color: colour("--line"),
      min_border: 6,
    });
    const items = [];
    chart.series.forEach((series, index) => {
      const look = { source: sources[index], line_color: colours[index] };
      const place = [{ field: "round" }, { field: "value" }];
      const line = plot.line(...place, { ...look, line_width: 2.5, line_dash: DASHES[index] });
      const renderers = [line];
      if (chart.rounds.length <= 100) {
        renderers.push(plot.scatter(...place, { ...look, marker: MARKERS[index], size: 6, fill_color: colours[index] }));
      }
      items.push(new Bokeh.LegendItem({ label: series.name, renderers }));
      const tooltips = [["round", "@round"], [series.name, unit.told]];
      plot.add_tools(new Bokeh.HoverTool({ renderers: [line], tooltips, mode: "vline" }));
    });
    for (const axis of [plot.xaxis, plot.yaxis]) {
      axis.axis_line_color = axis.major_tick_line_color = colour("--line");
      axis.minor_tick_line_color = null;
      axis.major_label_text_color = axis.axis_label_text_color = colour("--soft");
      axis.major_label_text_font = axis.axis_label_text_font = "system-ui, sans-serif";
      axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px";
      axis.axis_label_text_font_style = "normal";
    }
    plot.xaxis.axis_label = "round";
    plot.xaxis.ticker = plot.xgrid.ticker = new Bokeh.BasicTicker({ min_interval: 1, desired_num_ticks: 6 });
    plot.yaxis.formatter = new Bokeh.PrintfTickFormatter({ format: unit.axis });
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = colour("--line");
    if (items.length > 1) {
      const legend = new Bokeh.Legend({
        items,
        orientation: "horizontal",
        border_line_color: null,
        background_fill_alpha: 0,
        padding: 0,
        margin: 4,
        spacing: 14,
        label_text_color: colour("--ink"),
        label_text_font: "system-ui, sans-serif",
        label_text_font_size: "12px",
      });
      plot.add_layout(legend, "above");
    }
    return plot;
  }

  async function draw(isNew) {
    if (typeof Bokeh === "undefined") return; // the words stand in its place
    for (const place of document.querySelectorAll("[data-chart]")) {
      const told = place.dataset.chart;
      const known = drawn.get(place);
      if (!isNew && known?.told === told) continue;
      const chart = JSON.parse(told);
      const kind = [units(chart).axis, ...chart.series.map(series => series.name)].join();
      if (!isNew && known?.kind === kind) {
        known.told = told;
        chart.series.forEach((series, index) => (known.sources[index].data = points(chart, series)));
        known.plot.x_range.setv(range(chart));
        continue;
      }
      const sources = chart.series.map(series => new Bokeh.ColumnDataSource({ data: points(chart, series) }));
      const plot = figure(chart, sources);
      drawn.set(place, { told, kind, sources, plot });
      place.replaceChildren();
      await Bokeh.Plotting.show(plot, place);
    }
  }

  document.addEventListener("refreshed", () => draw(false));
  document.addEventListener("theme", () => draw(true));
  draw(true);
})();
