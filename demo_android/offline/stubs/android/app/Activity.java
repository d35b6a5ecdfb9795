package android.app;

import android.content.Context;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;
import android.view.Window;

public class Activity extends Context {
    protected void onCreate(Bundle saved) {}
    protected void onStop() {}
    protected void onNewIntent(Intent intent) {}
    public Intent getIntent() { return null; }
    public void setContentView(int layout) {}
    public <T extends View> T findViewById(int id) { return null; }
    public Window getWindow() { return null; }
    public void setTitle(CharSequence title) {}
    public final void runOnUiThread(Runnable action) {}
}
