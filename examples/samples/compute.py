# The code is the body of an async function: what it returns is the result, any JSON value.
from fractions import Fraction

harmonic = sum(Fraction(1, n) for n in range(1, 21))
primes = [n for n in range(2, 60) if all(n % d for d in range(2, n))]
return {"harmonic20": str(harmonic), "primes": primes, "largest": max(primes)}
