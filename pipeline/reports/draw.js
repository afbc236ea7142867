// Draws every <figure data-spec="id"> from the JSON element of that id, and marks what was drawn, for the tests.
document.querySelectorAll("figure[data-spec]").forEach(async (figure) => {
  const spec = JSON.parse(document.getElementById(figure.dataset.spec).textContent);
  const options = { renderer: "svg", actions: false, tooltip: { theme: "custom" } };
  await vegaEmbed(figure.querySelector(".chart"), spec, options);
  figure.dataset.drawn = "yes";
});
