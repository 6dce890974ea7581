package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
)

func get(url string) *http.Response {
	response, err := http.Get(url)
	if err != nil {
		panic(err)
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	return response
}

func main() {
	var wait sync.WaitGroup
	codes := make([]int, 12)
	for n := range codes {
		wait.Add(1)
		go func(n int) {
			defer wait.Done()
			codes[n] = get(fmt.Sprintf("%s/%d", os.Getenv("API"), n)).StatusCode
		}(n)
	}
	wait.Wait()
	count := 0
	for _, code := range codes {
		if code == 200 {
			count++
		}
	}
	fmt.Println(count, "ok")
	get(os.Getenv("OTHER"))
	refused := get(os.Getenv("OTHER"))
	if refused.StatusCode != 429 {
		panic(refused.Status)
	}
	fmt.Println("told", refused.Header.Get("Retry-After"))
}
