# `call_tool` asks the application, outside of the sandbox, to do something. Calls may wait for each other or not.
import asyncio

basket = {"apple": 3, "pear": 2, "plum": 7}
prices = await asyncio.gather(*(call_tool("price", {"item": item}) for item in basket))
total = sum(count * price["cents"] for count, price in zip(basket.values(), prices, strict=True))
receipt = await call_tool("order", {"basket": basket, "total_cents": total})
print(f"order {receipt['number']}: {total / 100:.2f}")
return receipt
