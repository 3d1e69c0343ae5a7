# Answers with a list that shares its parts, so that it has 2 ** 40 of them when written.
# expected: memory time error
def f(x):
    answer = [0]
    for _ in range(40):
        answer = [answer, answer]
    return answer
