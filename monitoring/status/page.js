(() => {
  "use strict";
  const page = document.documentElement;
  const look = () => {
    const age = Date.now() - Date.parse(page.dataset.made);
    // A clock that is far off must not call fresh what the server knows to be old.
    if (age > 300000) page.dataset.age = "stale";
  };
  look();
  setInterval(look, 5000);
  // A reload while the server is away would lose the page.
  setInterval(async () => {
    try {
      const answer = await fetch(location.href, { cache: "no-cache" });
      if (answer.ok) location.reload();
    } catch (error) {
      look();
    }
  }, 60000);
})();
