# Answers with a list that has itself.
# expected: error
def f(x):
    answer = []
    answer.append(answer)
    return answer
