# attempts: the largest result there may be, many times over, of the dearest shape to read
# layer: result cap
# category: python level
# outcomes: RESULT_TOO_LARGE MEMORY_LIMIT_EXCEEDED
# evidence: made
# host: unchanged, others served
held("made")
return [[] for _ in range(2_000_000)]
