// The same sandbox runs JavaScript: three calls at once, and the line of what goes wrong.
const basket = {apple: 3, pear: 2, plum: 7};
const prices = await parallel(Object.keys(basket), item => callTool("price", {item}));
const total = Object.values(basket).reduce((sum, count, i) => sum + count * prices[i].cents, 0);
console.log(`${prices.length} prices, ${total / 100} in all`);
console.warn("nothing was ordered");
return {total_cents: total};
